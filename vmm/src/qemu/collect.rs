//! The options of a command line, collected before anything is made of them: what is written later may be referred to
//! earlier, `-set` changes what stands before it, and what QEMU merges is merged.

use devices::virtio::options::{ConfigError, Pairs};

use super::args::{Arg, Args, Group, Opt, tokenise};
use super::readconfig;

/// A monitor that was asked for by where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MonitorText {
    pub(super) option: &'static str,
    pub(super) place: String,
}

/// What the user said, in categories.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Collected {
    pub(super) groups: Vec<(Group, Pairs)>,
    pub(super) machine: Pairs,
    pub(super) accelerators: Vec<Pairs>,
    pub(super) cpu: Option<String>,
    pub(super) smp: Pairs,
    pub(super) memory: Pairs,
    pub(super) boot: Pairs,
    pub(super) globals: Vec<[String; 3]>,
    pub(super) serials: Vec<String>,
    pub(super) monitors: Vec<MonitorText>,
    pub(super) kernel: Option<String>,
    pub(super) initrd: Option<String>,
    pub(super) append: Option<String>,
    pub(super) bios: Option<String>,
    pub(super) name: Pairs,
    pub(super) uuid: Option<String>,
    pub(super) pidfile: Option<String>,
    pub(super) qtest: Option<String>,
    pub(super) qtest_log: Option<String>,
    /// `-action`, `-no-reboot` and `-no-shutdown`.
    pub(super) actions: Pairs,
    pub(super) daemonize: bool,
    pub(super) paused: bool,
    pub(super) no_defaults: bool,
    pub(super) no_graphic: bool,
    /// `-display none`: the user knows that there is no window.
    pub(super) no_display: bool,
    /// Options of which there is little to say; each is looked at by itself.
    pub(super) small: Vec<Arg>,
    pub(super) help: bool,
    pub(super) version: bool,
    pub(super) notes: Vec<String>,
}

impl Collected {
    /// Collects the words of a command line, without the program's name.
    pub(super) fn from_words(words: impl IntoIterator<Item = String>) -> Result<Self, ConfigError> {
        let Args { args, notes } = tokenise(words)?;
        let mut collected = Self {
            notes,
            ..Self::default()
        };
        args.into_iter().try_for_each(|arg| collected.add(arg))?;
        Ok(collected)
    }

    /// All of a kind, in the user's order.
    pub(super) fn of(&self, wanted: Group) -> impl Iterator<Item = &Pairs> {
        self.groups
            .iter()
            .filter(move |(group, _)| *group == wanted)
            .map(|(_, pairs)| pairs)
    }

    fn add(&mut self, arg: Arg) -> Result<(), ConfigError> {
        let value = arg.value.as_str();
        let text = || Some(value.to_owned());
        match arg.option {
            Opt::Each(group) => self.groups.push((group, group.parse(value)?)),
            Opt::Machine => self.machine.extend(Pairs::parse(value, Some("type"))),
            Opt::Accel => self.accelerators.push(Pairs::parse(value, Some("accel"))),
            Opt::EnableKvm => self.accelerators.push(Pairs::parse("kvm", Some("accel"))),
            Opt::Cpu => self.cpu = text(),
            Opt::Smp => self.smp.extend(Pairs::parse(value, Some("cpus"))),
            Opt::Memory => self.memory.extend(Pairs::parse(value, Some("size"))),
            Opt::Boot => self.boot.extend(Pairs::parse(value, Some("order"))),
            Opt::Global => self.globals.push(global(value)?),
            Opt::Set => self.set(value)?,
            Opt::ReadConfig => readconfig::read(value, self)?,
            Opt::Serial => self.serials.push(value.to_owned()),
            Opt::Monitor => self.monitor("-monitor", value),
            Opt::Qmp => self.monitor("-qmp", value),
            Opt::QmpPretty => self.monitor("-qmp-pretty", value),
            Opt::Kernel => self.kernel = text(),
            Opt::Initrd => self.initrd = text(),
            Opt::Append => self.append = text(),
            Opt::Bios => self.bios = text(),
            Opt::Name => self.name.extend(Pairs::parse(value, Some("guest"))),
            Opt::Uuid => self.uuid = text(),
            Opt::Pidfile => self.pidfile = text(),
            Opt::Qtest => self.qtest = text(),
            Opt::QtestLog => self.qtest_log = text(),
            Opt::Action => self.actions.extend(Pairs::parse(value, None)),
            Opt::NoReboot => self.actions.push("reboot", "shutdown"),
            Opt::NoShutdown => self.actions.push("shutdown", "pause"),
            Opt::Daemonize => self.daemonize = true,
            Opt::Paused => self.paused = true,
            Opt::NoDefaults => self.no_defaults = true,
            Opt::NoGraphic => self.no_graphic = true,
            Opt::Help => self.help = true,
            Opt::Version => self.version = true,
            _ => self.small.push(arg),
        }
        Ok(())
    }

    fn monitor(&mut self, option: &'static str, place: &str) {
        self.monitors.push(MonitorText {
            option,
            place: place.to_owned(),
        });
    }

    /// `-set group.id.key=value`.
    fn set(&mut self, text: &str) -> Result<(), ConfigError> {
        let refused =
            |problem: &str| ConfigError::refused(format_args!("-set {text}"), problem, "write GROUP.ID.KEY=VALUE");
        let (name, value) = text.split_once('=').ok_or_else(|| refused("there is no '='"))?;
        let mut parts = name.splitn(3, '.');
        let (Some(group), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(refused("this is not GROUP.ID.KEY"));
        };
        let group = Group::from_name(group).ok_or_else(|| refused("there is no such group"))?;
        let mut of_group = self.groups.iter_mut().filter(|(other, _)| *other == group);
        let found = of_group.find(|(_, pairs)| pairs.get("id") == Some(id));
        let (_, pairs) = found.ok_or_else(|| refused("no option that stands before it has this id"))?;
        pairs.take(key);
        pairs.push(key, value);
        Ok(())
    }
}

/// `driver.property=value`, or `driver=..,property=..,value=..`.
fn global(text: &str) -> Result<[String; 3], ConfigError> {
    let refused =
        |problem: &str| ConfigError::refused(format_args!("-global {text}"), problem, "write DRIVER.PROPERTY=VALUE");
    if let Some((name, value)) = text.split_once('=')
        && let Some((driver, property)) = name.split_once('.')
    {
        return Ok([driver, property, value].map(str::to_owned));
    }
    let mut pairs = Pairs::parse(text, None);
    let all = [pairs.take("driver"), pairs.take("property"), pairs.take("value")];
    match all {
        [Some(driver), Some(property), Some(value)] if pairs.is_empty() => Ok([driver, property, value]),
        _ => Err(refused("this is not DRIVER.PROPERTY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn collect(text: &str) -> Result<Collected, String> {
        Collected::from_words(text.split_whitespace().map(str::to_owned)).map_err(|error| error.to_string())
    }

    #[test]
    fn repeated_machine_options_merge() {
        let collected = collect("-M pc,usb=off -machine accel=kvm -M memory-backend=mem").unwrap();
        assert_eq!(
            collected.machine.to_string(),
            "type=pc,usb=off,accel=kvm,memory-backend=mem"
        );
    }

    #[test]
    fn set_changes_what_stands_before_it() {
        let collected =
            collect("-netdev hubport,hubid=0,id=hs0 -set netdev.hs0.queues=2 -set netdev.hs0.hubid=1").unwrap();
        let netdev = collected.of(Group::Netdev).next().unwrap();
        assert_eq!(netdev.to_string(), "type=hubport,id=hs0,queues=2,hubid=1");
        for (text, complaint) in [
            (
                "-set netdev.x.a=1 -netdev user,id=x",
                "no option that stands before it has this id",
            ),
            ("-set a.b.c=1", "there is no such group"),
            ("-set netdev.x=1", "this is not GROUP.ID.KEY"),
            ("-set netdev.x.y", "there is no '='"),
        ] {
            let error = collect(text).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn globals_have_two_spellings() {
        let expected = ["virtio-pci", "disable-modern", "on"].map(str::to_owned);
        for text in [
            "-global virtio-pci.disable-modern=on",
            "-global driver=virtio-pci,property=disable-modern,value=on",
        ] {
            assert_eq!(collect(text).unwrap().globals, std::slice::from_ref(&expected));
        }
        assert!(collect("-global x").unwrap_err().contains("DRIVER.PROPERTY=VALUE"));
    }
}
