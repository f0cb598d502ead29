//! The unions of options that things with names are made of: what of QEMU's qapi/net.json, qapi/char.json, qapi/qom.json and
//! qapi/block-core.json there is here. What the options mean is said where the command line's are read; they are the same.

use super::schema::{EMPTY, Enum, Member, Object, Qapi, Type, Variants};

const fn flag(name: &'static str) -> Member {
    Member::optional(name, Type::Bool)
}

const fn text(name: &'static str) -> Member {
    Member::optional(name, Type::Str)
}

const fn int(name: &'static str) -> Member {
    Member::optional(name, Type::Int)
}

const fn object(members: &'static [Member]) -> Object {
    Object {
        members,
        variants: None,
        open: false,
    }
}

macro_rules! unions {
    ($($(#[$doc:meta])* $name:ident = $object:ident;)*) => {
        $($(#[$doc])*
        #[derive(Clone, PartialEq, Debug)]
        pub enum $name {}

        impl Qapi for $name {
            const TYPE: Type = Type::Object(&$object);
        })*
    };
}

unions! {
    /// Arguments of `netdev_add`.
    Netdev = NETDEV;
    /// The backend of `chardev-add`.
    ChardevBackend = CHARDEV;
    /// Arguments of `object-add`.
    ObjectOptions = OBJECT;
    /// Arguments of `blockdev-add`.
    BlockdevOptions = BLOCKDEV;
}

/// Members of [`Netdev`] that are lists of strings, each in an object of its own.
pub const STRING_LISTS: [&str; 3] = ["dnssearch", "hostfwd", "guestfwd"];

static STRING: Object = object(&[Member::required("str", Type::Str)]);
const STRINGS: Type = Type::Array(&Type::Object(&STRING));

static NETDEV: Object = Object {
    members: &[
        Member::required("id", Type::Str),
        Member::required("type", Type::Enum(&NET_DRIVER)),
    ],
    variants: Some(Variants {
        tag: "type",
        cases: &[
            ("user", &NET_USER),
            ("tap", &NET_TAP),
            ("socket", &NET_SOCKET),
            ("stream", &NET_STREAM),
            ("dgram", &NET_DGRAM),
            ("hubport", &NET_HUBPORT),
            ("vhost-user", &NET_VHOST_USER),
        ],
    }),
    open: false,
};

static NET_DRIVER: Enum = Enum {
    values: &["user", "tap", "socket", "stream", "dgram", "hubport", "vhost-user"],
};

static NET_USER: Object = object(&[
    text("hostname"),
    flag("restrict"),
    flag("ipv4"),
    flag("ipv6"),
    text("ip"),
    text("net"),
    text("host"),
    text("tftp"),
    text("bootfile"),
    text("dhcpstart"),
    text("dns"),
    Member::optional("dnssearch", STRINGS),
    text("domainname"),
    text("ipv6-prefix"),
    int("ipv6-prefixlen"),
    text("ipv6-host"),
    text("ipv6-dns"),
    Member::optional("hostfwd", STRINGS),
    Member::optional("guestfwd", STRINGS),
    text("tftp-server-name"),
]);

static NET_TAP: Object = object(&[
    text("ifname"),
    text("fd"),
    text("fds"),
    text("script"),
    text("downscript"),
    text("br"),
    text("helper"),
    Member::optional("sndbuf", Type::Uint64),
    flag("vnet_hdr"),
    flag("vhost"),
    text("vhostfd"),
    text("vhostfds"),
    flag("vhostforce"),
    Member::optional("queues", <u32 as Qapi>::TYPE),
    Member::optional("poll-us", <u32 as Qapi>::TYPE),
]);

static NET_SOCKET: Object = object(&[
    text("fd"),
    text("listen"),
    text("connect"),
    text("mcast"),
    text("localaddr"),
    text("udp"),
]);

static NET_STREAM: Object = object(&[Member::required("addr", Type::Object(&ADDRESS)), flag("server")]);

static NET_DGRAM: Object = object(&[
    Member::optional("local", Type::Object(&ADDRESS)),
    Member::optional("remote", Type::Object(&ADDRESS)),
]);

static NET_HUBPORT: Object = object(&[Member::required("hubid", <i32 as Qapi>::TYPE), text("netdev")]);

static NET_VHOST_USER: Object = object(&[
    Member::required("chardev", Type::Str),
    flag("vhostforce"),
    int("queues"),
]);

/// The address of a socket, its parts beside its type.
static ADDRESS: Object = Object {
    members: &[Member::required("type", Type::Enum(&ADDRESS_TYPE))],
    variants: Some(Variants {
        tag: "type",
        cases: &[("inet", &INET), ("unix", &UNIX), ("fd", &STRING)],
    }),
    open: false,
};

/// The same, its parts in an object of their own.
static WRAPPED_ADDRESS: Object = Object {
    members: &[Member::required("type", Type::Enum(&ADDRESS_TYPE))],
    variants: Some(Variants {
        tag: "type",
        cases: &[("inet", &INET_DATA), ("unix", &UNIX_DATA), ("fd", &FD_DATA)],
    }),
    open: false,
};

static ADDRESS_TYPE: Enum = Enum {
    values: &["inet", "unix", "fd"],
};

static INET: Object = object(&[
    Member::required("host", Type::Str),
    Member::required("port", Type::Str),
    flag("numeric"),
    flag("ipv4"),
    flag("ipv6"),
    flag("keep-alive"),
]);

static UNIX: Object = object(&[Member::required("path", Type::Str), flag("abstract"), flag("tight")]);
static INET_DATA: Object = object(&[Member::required("data", Type::Object(&INET))]);
static UNIX_DATA: Object = object(&[Member::required("data", Type::Object(&UNIX))]);
static FD_DATA: Object = object(&[Member::required("data", Type::Object(&STRING))]);

static CHARDEV: Object = Object {
    members: &[Member::required("type", Type::Enum(&CHARDEV_KIND))],
    variants: Some(Variants {
        tag: "type",
        cases: &[
            ("file", &CHAR_FILE_DATA),
            ("pipe", &CHAR_PIPE_DATA),
            ("socket", &CHAR_SOCKET_DATA),
            ("pty", &CHAR_COMMON_DATA),
            ("null", &CHAR_COMMON_DATA),
            ("stdio", &CHAR_STDIO_DATA),
            ("ringbuf", &CHAR_RINGBUF_DATA),
        ],
    }),
    open: false,
};

static CHARDEV_KIND: Enum = Enum {
    values: &["file", "pipe", "socket", "pty", "null", "stdio", "ringbuf"],
};

static CHAR_FILE_DATA: Object = object(&[Member::required("data", Type::Object(&CHAR_FILE))]);
static CHAR_FILE: Object = object(&[
    text("logfile"),
    flag("logappend"),
    text("in"),
    Member::required("out", Type::Str),
    flag("append"),
]);
static CHAR_PIPE_DATA: Object = object(&[Member::required("data", Type::Object(&CHAR_PIPE))]);
static CHAR_PIPE: Object = object(&[
    text("logfile"),
    flag("logappend"),
    Member::required("device", Type::Str),
]);
static CHAR_SOCKET_DATA: Object = object(&[Member::required("data", Type::Object(&CHAR_SOCKET))]);
static CHAR_SOCKET: Object = object(&[
    text("logfile"),
    flag("logappend"),
    Member::required("addr", Type::Object(&WRAPPED_ADDRESS)),
    flag("server"),
    flag("wait"),
    flag("nodelay"),
    int("reconnect"),
]);
static CHAR_COMMON_DATA: Object = object(&[Member::required("data", Type::Object(&CHAR_COMMON))]);
static CHAR_COMMON: Object = object(&[text("logfile"), flag("logappend")]);
static CHAR_STDIO_DATA: Object = object(&[Member::required("data", Type::Object(&CHAR_STDIO))]);
static CHAR_STDIO: Object = object(&[text("logfile"), flag("logappend"), flag("signal")]);
static CHAR_RINGBUF_DATA: Object = object(&[Member::required("data", Type::Object(&CHAR_RINGBUF))]);
static CHAR_RINGBUF: Object = object(&[text("logfile"), flag("logappend"), int("size")]);

static OBJECT: Object = Object {
    members: &[
        Member::required("qom-type", Type::Enum(&OBJECT_TYPE)),
        Member::required("id", Type::Str),
    ],
    variants: Some(Variants {
        tag: "qom-type",
        cases: &[
            ("iothread", &IOTHREAD),
            ("rng-builtin", &EMPTY),
            ("rng-random", &RNG_RANDOM),
            ("memory-backend-ram", &MEMORY),
            ("memory-backend-memfd", &MEMORY_MEMFD),
            ("memory-backend-file", &MEMORY_FILE),
            ("filter-dump", &FILTER_DUMP),
        ],
    }),
    open: false,
};

static OBJECT_TYPE: Enum = Enum {
    values: &[
        "iothread",
        "rng-builtin",
        "rng-random",
        "memory-backend-ram",
        "memory-backend-memfd",
        "memory-backend-file",
        "filter-dump",
    ],
};

static IOTHREAD: Object = object(&[int("poll-max-ns"), int("poll-grow"), int("poll-shrink")]);
static RNG_RANDOM: Object = object(&[text("filename")]);
static MEMORY: Object = object(&[
    Member::required("size", Type::Uint64),
    flag("share"),
    flag("prealloc"),
    flag("merge"),
    flag("dump"),
]);
static MEMORY_MEMFD: Object = object(&[
    Member::required("size", Type::Uint64),
    flag("share"),
    flag("prealloc"),
    flag("merge"),
    flag("dump"),
    flag("hugetlb"),
    Member::optional("hugetlbsize", Type::Uint64),
    flag("seal"),
]);
static MEMORY_FILE: Object = object(&[
    Member::required("size", Type::Uint64),
    flag("share"),
    flag("prealloc"),
    flag("merge"),
    flag("dump"),
    Member::required("mem-path", Type::Str),
    flag("discard-data"),
    flag("readonly"),
]);
static FILTER_DUMP: Object = object(&[
    Member::required("netdev", Type::Str),
    Member::required("file", Type::Str),
    Member::optional("maxlen", <u32 as Qapi>::TYPE),
]);

static BLOCKDEV: Object = Object {
    members: &[
        Member::required("driver", Type::Enum(&BLOCK_DRIVER)),
        text("node-name"),
        Member::optional("discard", Type::Enum(&DISCARD)),
        Member::optional("cache", Type::Object(&CACHE)),
        flag("read-only"),
        flag("auto-read-only"),
        flag("force-share"),
        Member::optional("detect-zeroes", Type::Enum(&DETECT_ZEROES)),
    ],
    variants: Some(Variants {
        tag: "driver",
        cases: &[
            ("raw", &BLOCK_RAW),
            ("qcow2", &BLOCK_QCOW2),
            ("file", &BLOCK_FILE),
            ("host_device", &BLOCK_FILE),
            ("null-co", &BLOCK_NULL),
        ],
    }),
    open: false,
};

static BLOCK_DRIVER: Enum = Enum {
    values: &["raw", "qcow2", "file", "host_device", "null-co"],
};
static DISCARD: Enum = Enum {
    values: &["ignore", "unmap"],
};
static DETECT_ZEROES: Enum = Enum {
    values: &["off", "on", "unmap"],
};
static AIO: Enum = Enum {
    values: &["threads", "io_uring"],
};
static LOCKING: Enum = Enum {
    values: &["auto", "on"],
};
static CACHE: Object = object(&[flag("direct"), flag("no-flush")]);
/// A static, because the compiler follows constants into what they refer to, and this refers to itself.
static NODE: Type = Type::Object(&BLOCKDEV);
static BLOCK_RAW: Object = object(&[Member::required("file", Type::NameOr(&NODE))]);
static BLOCK_QCOW2: Object = object(&[
    Member::required("file", Type::NameOr(&NODE)),
    flag("lazy-refcounts"),
    flag("pass-discard-request"),
]);
static BLOCK_FILE: Object = object(&[
    Member::required("filename", Type::Str),
    Member::optional("aio", Type::Enum(&AIO)),
    Member::optional("locking", Type::Enum(&LOCKING)),
]);
static BLOCK_NULL: Object = object(&[
    int("size"),
    Member::optional("latency-ns", Type::Uint64),
    flag("read-zeroes"),
]);
