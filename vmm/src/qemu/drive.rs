//! Disks as QEMU has them, a drive or a graph of block nodes, made into the options of our virtio-blk-pci.

use devices::virtio::options::{ConfigError, Pairs};

use super::backends::Named;
use super::keyval::{Reader, Settled, canonical, settled};

/// Options of drives and nodes that are as things are here.
const SETTLED: &[Settled] = &[
    settled(
        "auto-read-only",
        &[],
        "a file that cannot be written is refused, and readonly=on says that it need not be",
    ),
    settled(
        "snapshot",
        &["off"],
        "make an overlay: qemu-img create -f qcow2 -b FILE -F FORMAT OVERLAY",
    ),
    settled("copy-on-read", &["off"], "data of a backing file stays there"),
    settled(
        "werror",
        &["report"],
        "errors are reported to the guest, and the guest goes on",
    ),
    settled(
        "rerror",
        &["report"],
        "errors are reported to the guest, and the guest goes on",
    ),
    settled("index", &[], ""),
    settled("force-share", &["off"], "images are locked"),
    settled("locking", &["auto", "on"], "images are locked"),
    settled("x-check-cache-dropped", &["off"], "it concerns migration"),
    settled("drop-cache", &[], ""),
    settled("pr-manager", &[""], "there is no SCSI"),
    settled(
        "overlap-check",
        &["none", "constant", "cached", "all"],
        "metadata is always checked",
    ),
    settled("lazy-refcounts", &["off"], "reference counts are kept"),
    settled("pass-discard-request", &["on"], "discards go to the file"),
    settled("pass-discard-snapshot", &["on"], "discards go to the file"),
    settled(
        "pass-discard-other",
        &["off"],
        "only the guest's discards go to the file",
    ),
    settled("cache-size", &[], ""),
    settled("l2-cache-size", &[], ""),
    settled("l2-cache-entry-size", &[], ""),
    settled("refcount-cache-size", &[], ""),
    settled("cache-clean-interval", &[], ""),
    settled("latency-ns", &["0"], "requests take the time that they take"),
];

/// What a `-drive` without `id` and `if` asks for; nothing when it has no medium.
pub(super) fn from_drive(subject: &str, pairs: Pairs) -> Result<Pairs, ConfigError> {
    if pairs.is_empty() {
        return Ok(pairs);
    }
    let mut reader = Reader::new(subject, pairs);
    reader.settle(SETTLED)?;
    let cdrom = match reader.text("media").as_deref() {
        None | Some("disk") => false,
        Some("cdrom") => true,
        Some(other) => return Err(reader.invalid("media", other, "disk|cdrom")),
    };
    let mut disk = Disk::default();
    if let Some(file) = reader.text("file") {
        disk.open(&reader, &file)?;
    }
    let nested = nested(&mut reader, "file")?;
    if !nested.is_empty() {
        disk.protocol(Reader::new(format!("{subject}: file"), nested))?;
    }
    let format = reader.text("format");
    let format = reader.text("driver").or(format);
    if let Some(format) = format {
        disk.format(&reader, &format)?;
    }
    if let Some(mode) = reader.text("cache") {
        disk.cache = mode;
    }
    disk.common(&mut reader)?;
    disk.readonly |= cdrom;
    reader.finish()?;
    disk.options(subject)
}

/// What a `-blockdev` without `node-name` asks for, which may refer to one of `nodes`.
pub(super) fn from_blockdev(subject: &str, pairs: Pairs, nodes: &Named) -> Result<Pairs, ConfigError> {
    let mut reader = Reader::new(subject, pairs);
    reader.settle(SETTLED)?;
    let driver = reader.required(
        "driver",
        "what is in the node: raw, qcow2, file, host_device or null-co",
    )?;
    let mut disk = Disk::default();
    if driver == "raw" || driver == "qcow2" {
        if let Some(node) = reader.text("file") {
            let below = nodes.get(&node).ok_or_else(|| {
                reader.refused(
                    &format!("file={node}: there is no node of that name"),
                    "write the node that another refers to before it",
                )
            })?;
            disk = Disk::from_options(below);
        }
        let nested = nested(&mut reader, "file")?;
        if !nested.is_empty() {
            disk.protocol(Reader::new(format!("{subject}: file"), nested))?;
        }
        if let Some(backing) = reader.text("backing") {
            return Err(reader.invalid("backing", &backing, "nothing: the image itself names its backing file"));
        }
        disk.format(&reader, &driver)?;
    } else {
        let mut below = Pairs::default();
        below.push("driver", driver);
        for key in ["filename", "size", "read-zeroes"] {
            if let Some(value) = reader.text(key) {
                below.push(key, value);
            }
        }
        disk.protocol(Reader::new(subject, below))?;
        // The bare bytes; a format above says otherwise.
        "raw".clone_into(&mut disk.format);
    }
    disk.common(&mut reader)?;
    reader.finish()?;
    disk.options(subject)
}

/// Takes `prefix.KEY=VALUE` out, as `KEY=VALUE`.
fn nested(reader: &mut Reader, prefix: &str) -> Result<Pairs, ConfigError> {
    let prefix = format!("{prefix}.");
    let keys: Vec<_> = reader
        .keys()
        .filter(|key| key.starts_with(&prefix))
        .map(str::to_owned)
        .collect();
    let mut nested = Pairs::default();
    for key in keys {
        if let (Some(value), Some(short)) = (reader.text(&key), key.strip_prefix(&prefix)) {
            nested.push(short, value);
        }
    }
    Ok(nested)
}

/// A disk on its way from one to the other.
#[derive(Default)]
struct Disk {
    path: Option<String>,
    format: String,
    readonly: bool,
    cache: String,
    others: Pairs,
}

impl Disk {
    /// The file name of a `-drive`: a path, or a protocol with a colon.
    fn open(&mut self, reader: &Reader, file: &str) -> Result<(), ConfigError> {
        let path = match file {
            "null-co://" | "null-aio://" => "null-co://",
            _ => file
                .strip_prefix("file:")
                .or_else(|| file.strip_prefix("host_device:"))
                .unwrap_or(file),
        };
        if path == file && !path.starts_with("null-co:") && has_protocol(path) {
            return Err(reader.invalid("file", file, "a path, or null-co://: there are no other protocols"));
        }
        self.path = Some(path.to_owned());
        Ok(())
    }

    /// A node that has the data.
    fn protocol(&mut self, mut reader: Reader) -> Result<(), ConfigError> {
        reader.settle(SETTLED)?;
        let null = match reader.text("driver").as_deref() {
            None => self.path.as_deref() == Some("null-co://"),
            Some("file" | "host_device" | "host_cdrom") => false,
            Some("null-co" | "null-aio") => true,
            Some(other) => {
                let expected = "raw, qcow2, file, host_device or null-co: there are no other drivers";
                return Err(reader.invalid("driver", other, expected));
            }
        };
        if null {
            self.path = Some("null-co://".to_owned());
            for key in ["size", "read-zeroes"] {
                if let Some(value) = reader.text(key) {
                    self.others.push(key, value);
                }
            }
        } else if let Some(path) = reader.text("filename") {
            self.path = Some(path);
        }
        self.common(&mut reader)?;
        if self.format.is_empty() && null {
            "raw".clone_into(&mut self.format);
        }
        reader.finish()
    }

    fn format(&mut self, reader: &Reader, name: &str) -> Result<(), ConfigError> {
        self.format = match name {
            "raw" | "host_device" | "file" => "raw",
            "qcow2" => "qcow2",
            other => return Err(reader.invalid("format", other, "raw|qcow2")),
        }
        .to_owned();
        Ok(())
    }

    /// What drives and nodes of every kind take.
    fn common(&mut self, reader: &mut Reader) -> Result<(), ConfigError> {
        for key in ["readonly", "read-only"] {
            if let Some(readonly) = reader.flag(key)? {
                self.readonly = readonly;
            }
        }
        self.cache_flags(reader)?;
        match reader.text("aio").as_deref() {
            None => {}
            // Linux's own interface of that name does for O_DIRECT what io_uring does for all.
            Some("native" | "io_uring") => self.others.push("aio", "io_uring"),
            Some("threads") => self.others.push("aio", "threads"),
            Some(other) => return Err(reader.invalid("aio", other, "threads|native|io_uring")),
        }
        match reader.text("discard").as_deref().map(canonical) {
            None => {}
            Some("ignore" | "off") => self.others.push("discard", "ignore"),
            Some("unmap" | "on") => self.others.push("discard", "unmap"),
            Some(other) => return Err(reader.invalid("discard", other, "ignore|off|unmap|on")),
        }
        if let Some(value) = reader.text("detect-zeroes") {
            self.others.push("detect-zeroes", canonical(&value));
        }
        Ok(())
    }

    /// `cache.direct`, `cache.writeback` and `cache.no-flush`, the three that QEMU's words for `cache=` stand for
    /// (block.c, `bdrv_parse_cache_mode`).
    fn cache_flags(&mut self, reader: &mut Reader) -> Result<(), ConfigError> {
        let direct = reader.flag("cache.direct")?;
        let writeback = reader.flag("cache.writeback")?;
        let no_flush = reader.flag("cache.no-flush")?;
        if direct.is_none() && writeback.is_none() && no_flush.is_none() {
            return Ok(());
        }
        let direct = direct.unwrap_or(matches!(self.cache.as_str(), "none" | "directsync"));
        let writeback = writeback.unwrap_or(!matches!(self.cache.as_str(), "writethrough" | "directsync"));
        let no_flush = no_flush.unwrap_or(self.cache == "unsafe");
        if no_flush && direct {
            return Err(reader.refused("cache.no-flush=on with cache.direct=on", "leave out one of them"));
        }
        self.cache = match (direct, writeback) {
            _ if no_flush => "unsafe",
            (false, true) => "writeback",
            (true, true) => "none",
            (false, false) => "writethrough",
            (true, false) => "directsync",
        }
        .to_owned();
        Ok(())
    }

    /// Back from the options of our device.
    fn from_options(options: &Pairs) -> Self {
        let mut others = options.clone();
        Self {
            path: others.take("path"),
            format: others.take("format").unwrap_or_default(),
            readonly: others.take("readonly").as_deref() == Some("on"),
            cache: others.take("cache").unwrap_or_default(),
            others,
        }
    }

    /// The options of our device.
    fn options(self, subject: &str) -> Result<Pairs, ConfigError> {
        let path = self
            .path
            .filter(|path| !path.is_empty())
            .ok_or_else(|| ConfigError::refused(subject, "no file is named", "add file=FILE"))?;
        let mut options = Pairs::default();
        options.push("path", path);
        if !self.format.is_empty() {
            options.push("format", self.format);
        }
        if self.readonly {
            options.push("readonly", "on");
        }
        if !self.cache.is_empty() {
            options.push("cache", self.cache);
        }
        options.extend(self.others);
        Ok(options)
    }
}

/// Whether QEMU would look for a protocol in this file name: a colon before any slash (block.c, `path_has_protocol`).
fn has_protocol(path: &str) -> bool {
    path.split(['/', ':'])
        .next()
        .is_some_and(|word| path[word.len()..].starts_with(':'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::qemu::backends::Backends;

    fn drive(text: &str) -> Result<String, String> {
        let options = from_drive("-drive id=d", Pairs::parse(text, None));
        options
            .map(|options| options.to_string())
            .map_err(|error| error.to_string())
    }

    fn blockdevs(texts: &[&str]) -> Result<String, String> {
        let mut backends = Backends::default();
        for text in texts {
            let pairs =
                super::super::keyval::parse("-blockdev", text, Some("driver")).map_err(|error| error.to_string())?;
            backends.add_blockdev(pairs).map_err(|error| error.to_string())?;
        }
        Ok(backends.drives["top"].to_string())
    }

    #[test]
    fn drives_become_options_of_our_disk() {
        for (text, expected) in [
            ("file=a.img,format=raw", "path=a.img,format=raw"),
            (
                "file=a,,b.img,format=qcow2,readonly=on",
                "path=a,,b.img,format=qcow2,readonly=on",
            ),
            (
                "file=null-co://,file.read-zeroes=on,format=raw",
                "path=null-co://,format=raw,read-zeroes=on",
            ),
            ("file.driver=file,file.filename=x:y,driver=raw", "path=x:y,format=raw"),
            (
                "file=./a:b,format=raw,cache=none,aio=native",
                "path=./a:b,format=raw,cache=none,aio=io_uring",
            ),
            ("file=a,format=raw,media=cdrom", "path=a,format=raw,readonly=on"),
            (
                "file=a,format=raw,cache.direct=on,cache.writeback=off",
                "path=a,format=raw,cache=directsync",
            ),
            (
                "file=a,format=raw,cache=unsafe,cache.direct=off",
                "path=a,format=raw,cache=unsafe",
            ),
            (
                "file=a,format=raw,discard=on,detect-zeroes=unmap,werror=report,auto-read-only=off",
                "path=a,format=raw,discard=unmap,detect-zeroes=unmap",
            ),
            ("file=file:a.img", "path=a.img"),
        ] {
            assert_eq!(drive(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_no_disk_here_has_is_refused() {
        for (text, complaint) in [
            ("format=raw", "no file is named"),
            ("file=nbd://x/y,format=raw", "there are no other protocols"),
            ("file=a,format=vmdk", "format=vmdk: expected raw|qcow2"),
            ("file=a,format=raw,snapshot=on", "make an overlay"),
            ("file=a,format=raw,werror=stop", "errors are reported to the guest"),
            ("file=a,format=raw,iops=100", "there is no option 'iops'"),
            ("file=a,format=raw,file.locking=off", "images are locked"),
            (
                "file=a,format=raw,cache.direct=on,cache.no-flush=on",
                "leave out one of them",
            ),
            ("file=blkdebug::null-co://,format=raw", "there are no other protocols"),
            ("file.driver=nbd,format=raw", "there are no other drivers"),
        ] {
            let error = drive(text).unwrap_err();
            assert!(error.contains(complaint) && error.starts_with("-drive id=d"), "{error}");
        }
    }

    #[test]
    fn nodes_refer_to_nodes() {
        let below = "driver=file,filename=a.qcow2,node-name=low,cache.direct=on";
        assert_eq!(
            blockdevs(&[below, "driver=qcow2,file=low,node-name=top"]),
            Ok("path=a.qcow2,format=qcow2,cache=none".into())
        );
        assert_eq!(
            blockdevs(&[
                r#"{"driver":"raw","node-name":"top","read-only":true,"file":{"driver":"file","filename":"a"}}"#
            ]),
            Ok("path=a,format=raw,readonly=on".into())
        );
        assert_eq!(
            blockdevs(&["driver=null-co,read-zeroes=on,node-name=top"]),
            Ok("path=null-co://,format=raw,read-zeroes=on".into())
        );
        assert_eq!(
            blockdevs(&["null-co,size=1M,node-name=top"]),
            Ok("path=null-co://,format=raw,size=1M".into())
        );
    }

    #[test]
    fn a_node_that_is_not_there_or_there_twice_is_refused() {
        for (texts, complaint) in [
            (
                &["driver=raw,file=low,node-name=top"][..],
                "there is no node of that name",
            ),
            (&["driver=raw,file.filename=a"], "node-name= is missing"),
            (&["null-co,node-name=top", "null-co,node-name=top"], "is there already"),
            (&["null-co,node-name=1"], "a letter, then letters"),
            (&["driver=nbd,node-name=top"], "driver=nbd"),
            (
                &["driver=qcow2,node-name=top,file.filename=a,backing=b"],
                "names its backing file",
            ),
        ] {
            let error = blockdevs(texts).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
