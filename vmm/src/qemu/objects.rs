//! Objects of `-object` and `object-add`.

use devices::virtio::options::{ConfigError, Pairs};

use super::keyval::{Reader, Settled, settled};

/// A kind of object.
struct Kind {
    name: &'static str,
    /// What is kept.
    keys: &'static [&'static str],
    /// Keys that have to be there.
    required: &'static [&'static str],
    settled: &'static [Settled],
}

/// Options of guest memory that are as things are here.
const MEMORY: &[Settled] = &[
    settled("prealloc", &["off"], "memory comes when the guest uses it"),
    settled("prealloc-threads", &[], ""),
    settled("prealloc-context", &[], ""),
    settled("merge", &[], "the guest cannot tell"),
    settled("dump", &[], "the guest cannot tell"),
    settled("policy", &["default"], "start the process under numactl(8)"),
    settled("reserve", &[], "the guest cannot tell"),
    settled("hugetlb", &["off"], "huge pages are transparent"),
    settled("seal", &["on"], "it is sealed"),
    settled("x-use-canonical-path-for-ramblock-id", &[], "there is no migration"),
];

/// All kinds.
const KINDS: &[Kind] = &[
    Kind {
        name: "memory-backend-ram",
        keys: &["size", "share"],
        required: &["size"],
        settled: MEMORY,
    },
    Kind {
        name: "memory-backend-memfd",
        keys: &["size", "share"],
        required: &["size"],
        settled: MEMORY,
    },
    Kind {
        name: "iothread",
        keys: &["poll-max-ns"],
        required: &[],
        settled: &[
            settled("poll-grow", &[], "the time to poll follows the load"),
            settled("poll-shrink", &[], "the time to poll follows the load"),
            settled("aio-max-batch", &[], "the guest cannot tell"),
            settled("thread-pool-min", &[], "the guest cannot tell"),
            settled("thread-pool-max", &[], "the guest cannot tell"),
        ],
    },
    Kind {
        name: "rng-random",
        keys: &["filename"],
        required: &[],
        settled: &[],
    },
    Kind {
        name: "rng-builtin",
        keys: &[],
        required: &[],
        settled: &[],
    },
    Kind {
        name: "rng-egd",
        keys: &["chardev"],
        required: &["chardev"],
        settled: &[],
    },
    Kind {
        name: "filter-dump",
        keys: &["netdev", "file"],
        required: &["netdev", "file"],
        settled: &[
            settled("queue", &["all"], "both directions are kept"),
            settled("maxlen", &["65536"], "frames are kept whole"),
            settled("status", &["on"], "it is on from the start"),
        ],
    },
];

/// The kinds that there are.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|kind| kind.name)
}

/// The options of an object without `id`, each known.
pub(super) fn object(subject: &str, pairs: Pairs) -> Result<Pairs, ConfigError> {
    let mut reader = Reader::new(subject, pairs);
    let names = || kinds().collect::<Vec<_>>().join("|");
    let name = reader.required("qom-type", &names())?;
    let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else {
        return Err(reader.invalid("qom-type", &name, &names()));
    };
    reader.settle(kind.settled)?;
    let mut options = Pairs::default();
    options.push("qom-type", name);
    for key in kind.keys {
        match reader.text(key) {
            Some(value) => options.push(*key, value),
            None if kind.required.contains(key) => {
                reader.required(key, "what the object is about")?;
            }
            None => {}
        }
    }
    reader.finish()?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let options = object("-object", Pairs::parse(text, Some("qom-type")));
        options
            .map(|options| options.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn objects_are_known_with_all_that_they_have() {
        for (text, expected) in [
            (
                "memory-backend-memfd,size=256M,share=on,",
                "qom-type=memory-backend-memfd,size=256M,share=on",
            ),
            ("iothread,poll-max-ns=0", "qom-type=iothread,poll-max-ns=0"),
            (
                "rng-random,filename=/dev/random",
                "qom-type=rng-random,filename=/dev/random",
            ),
            (
                "filter-dump,netdev=n,file=a.pcap",
                "qom-type=filter-dump,netdev=n,file=a.pcap",
            ),
        ] {
            assert_eq!(read(text), Ok(expected.to_owned()), "{text}");
        }
        for (text, complaint) in [
            ("memory-backend-memfd", "size= is missing"),
            ("memory-backend-file,size=1,mem-path=x", "expected memory-backend-ram|"),
            ("iothread,x=1", "there is no option 'x'"),
            ("memory-backend-ram,size=1,hugetlb=on", "huge pages are transparent"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
