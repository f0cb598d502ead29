//! What a machine is: questions that its configuration answers.

use super::{Command, Context, command};
use crate::config::MAX_CPUS;
use crate::qmp::error::Error;
use crate::qmp::schema::{Nothing, enumerations, structures};
use crate::qmp::target::Board;
use crate::qmp::threads::thread_named;

pub(super) static COMMANDS: &[Command] = &[
    command!("query-name", query_name),
    command!("query-uuid", query_uuid),
    command!("query-kvm", query_kvm),
    command!("query-target", query_target),
    command!("query-machines", query_machines),
    command!("query-cpus-fast", query_cpus_fast),
    command!("query-cpu-definitions", query_cpu_definitions),
    command!("query-hotpluggable-cpus", query_hotpluggable_cpus),
    command!("query-iothreads", query_iothreads),
    command!("query-memory-size-summary", query_memory_size_summary),
    command!("query-memdev", query_memdev),
];

enumerations! {
    enum SysEmuTarget {
        X86_64 = "x86_64",
    }
    enum HostMemPolicy {
        Default = "default",
    }
}

structures! {
    struct NameInfo {
        name: Option<String>,
    }
    struct UuidInfo {
        uuid as "UUID": String,
    }
    struct KvmInfo {
        enabled: bool,
        present: bool,
    }
    struct TargetInfo {
        arch: SysEmuTarget,
    }
    struct MachineInfo {
        name: String,
        alias: Option<String>,
        is_default as "is-default": Option<bool>,
        cpu_max as "cpu-max": i64,
        hotpluggable_cpus as "hotpluggable-cpus": bool,
        numa_mem_supported as "numa-mem-supported": bool,
        deprecated: bool,
        default_cpu_type as "default-cpu-type": Option<String>,
        default_ram_id as "default-ram-id": Option<String>,
    }
    struct CpuInstanceProperties {
        socket_id as "socket-id": Option<i64>,
        core_id as "core-id": Option<i64>,
        thread_id as "thread-id": Option<i64>,
    }
    struct CpuInfoFast {
        cpu_index as "cpu-index": i64,
        qom_path as "qom-path": String,
        thread_id as "thread-id": i64,
        props: Option<CpuInstanceProperties>,
        target: SysEmuTarget,
    }
    struct CpuDefinitionInfo {
        name: String,
        migration_safe as "migration-safe": Option<bool>,
        is_static as "static": bool,
        unavailable_features as "unavailable-features": Option<Vec<String>>,
        typename: String,
        deprecated: bool,
    }
    struct HotpluggableCpu {
        of as "type": String,
        vcpus_count as "vcpus-count": i64,
        props: CpuInstanceProperties,
        qom_path as "qom-path": Option<String>,
    }
    struct IoThreadInfo {
        id: String,
        thread_id as "thread-id": i64,
        poll_max_ns as "poll-max-ns": u64,
        poll_grow as "poll-grow": i64,
        poll_shrink as "poll-shrink": i64,
        aio_max_batch as "aio-max-batch": i64,
    }
    struct MemoryInfo {
        base_memory as "base-memory": u64,
        plugged_memory as "plugged-memory": Option<u64>,
    }
    struct Memdev {
        id: Option<String>,
        size: u64,
        merge: bool,
        dump: bool,
        prealloc: bool,
        share: bool,
        reserve: Option<bool>,
        host_nodes as "host-nodes": Vec<u16>,
        policy: HostMemPolicy,
    }
}

/// The UUID of a machine that was given none.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";
/// What QEMU calls the memory of a pc that the user gave no name.
const DEFAULT_RAM_ID: &str = "pc.ram";
/// CPU models. Both are the host's CPU as far as KVM passes it through.
pub(super) const CPU_MODELS: [&str; 2] = ["host", "max"];

fn query_name(context: &Context<'_>, _: Nothing) -> Result<NameInfo, Error> {
    let name = context.target.about().name.clone();
    Ok(NameInfo { name })
}

fn query_uuid(context: &Context<'_>, _: Nothing) -> Result<UuidInfo, Error> {
    let uuid = context
        .target
        .about()
        .uuid
        .clone()
        .unwrap_or_else(|| NO_UUID.to_owned());
    Ok(UuidInfo { uuid })
}

fn query_kvm(context: &Context<'_>, _: Nothing) -> Result<KvmInfo, Error> {
    let enabled = context.target.about().kvm;
    Ok(KvmInfo { enabled, present: true })
}

fn query_target(_: &Context<'_>, _: Nothing) -> Result<TargetInfo, Error> {
    Ok(TargetInfo {
        arch: SysEmuTarget::X86_64,
    })
}

/// Exactly the members that QEMU 7.2 has; its test program refuses more.
fn query_machines(_: &Context<'_>, _: Nothing) -> Result<Vec<MachineInfo>, Error> {
    let info = |board: Board| {
        let pc = board == Board::Pc;
        MachineInfo {
            name: board.name().to_owned(),
            alias: pc.then(|| "pc".to_owned()),
            is_default: pc.then_some(true),
            cpu_max: if pc { MAX_CPUS.into() } else { 1 },
            hotpluggable_cpus: false,
            numa_mem_supported: false,
            deprecated: false,
            default_cpu_type: pc.then(|| cpu_type("host")),
            default_ram_id: Some(if pc { DEFAULT_RAM_ID } else { "ram" }.to_owned()),
        }
    };
    Ok(Board::ALL.map(info).into())
}

fn cpu_type(model: &str) -> String {
    format!("{model}-x86_64-cpu")
}

fn cpu_path(index: usize) -> String {
    format!("/machine/unattached/device[{index}]")
}

fn place(cpu: &[u32; 3]) -> CpuInstanceProperties {
    let [socket, core, thread] = cpu.map(|number| Some(number.into()));
    CpuInstanceProperties {
        socket_id: socket,
        core_id: core,
        thread_id: thread,
    }
}

fn query_cpus_fast(context: &Context<'_>, _: Nothing) -> Result<Vec<CpuInfoFast>, Error> {
    let info = |(index, cpu): (usize, &[u32; 3])| CpuInfoFast {
        cpu_index: index as i64,
        qom_path: cpu_path(index),
        thread_id: thread_named(&format!("cpu{index}")),
        props: Some(place(cpu)),
        target: SysEmuTarget::X86_64,
    };
    Ok(context.target.about().cpus.iter().enumerate().map(info).collect())
}

fn query_cpu_definitions(_: &Context<'_>, _: Nothing) -> Result<Vec<CpuDefinitionInfo>, Error> {
    let info = |model: &str| CpuDefinitionInfo {
        name: model.to_owned(),
        migration_safe: Some(false),
        is_static: false,
        unavailable_features: Some(Vec::new()),
        typename: cpu_type(model),
        deprecated: false,
    };
    Ok(CPU_MODELS.map(info).into())
}

/// All CPUs that there are; none can be added.
fn query_hotpluggable_cpus(context: &Context<'_>, _: Nothing) -> Result<Vec<HotpluggableCpu>, Error> {
    let about = context.target.about();
    if about.board != Board::Pc {
        return Err(Error::new("machine does not support hot-plugging CPUs"));
    }
    let info = |(index, cpu): (usize, &[u32; 3])| HotpluggableCpu {
        of: cpu_type(&about.cpu_model),
        vcpus_count: 1,
        props: place(cpu),
        qom_path: Some(cpu_path(index)),
    };
    // QEMU counts down.
    Ok(about.cpus.iter().enumerate().map(info).rev().collect())
}

fn query_iothreads(context: &Context<'_>, _: Nothing) -> Result<Vec<IoThreadInfo>, Error> {
    let threads = context.target.inventory().io_threads().into_iter();
    let info = threads.map(|thread| IoThreadInfo {
        id: thread.name().to_owned(),
        thread_id: thread_named(thread.name()),
        poll_max_ns: devices::io_thread::PollPolicy::for_this_host().max.as_nanos() as u64,
        poll_grow: 0,
        poll_shrink: 0,
        aio_max_batch: 0,
    });
    Ok(info.collect())
}

fn query_memory_size_summary(context: &Context<'_>, _: Nothing) -> Result<MemoryInfo, Error> {
    Ok(MemoryInfo {
        base_memory: context.target.about().memory,
        plugged_memory: Some(0),
    })
}

fn query_memdev(context: &Context<'_>, _: Nothing) -> Result<Vec<Memdev>, Error> {
    let about = context.target.about();
    if about.memory == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Memdev {
        id: Some(
            about
                .memory_backend
                .clone()
                .unwrap_or_else(|| DEFAULT_RAM_ID.to_owned()),
        ),
        size: about.memory,
        merge: true,
        dump: true,
        prealloc: false,
        share: about.memory_shared,
        reserve: Some(true),
        host_nodes: Vec::new(),
        policy: HostMemPolicy::Default,
    }])
}
