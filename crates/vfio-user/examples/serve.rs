//! Serves functions of an embedded NVMe subsystem on vfio-user sockets, without anything else of towline.
//!
//! ```text
//! serve --disk FILE:BYTES [--disk …] [--map-any] [--vfs N] KIND=SOCKET…
//! ```
//! KIND is `pf` (a further PF), `vf`, `siov`, or `controlling`: then the guest has the controlling function's admin queue, and the other
//! functions stay offline until the guest brings them online. A line `status` on standard input prints what each server has seen; the end of
//! standard input ends it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::error::Error;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use towline_nvme::admin::AdminClient;
use towline_nvme::model::{
    CONTROLLING_CNTLID, ControllerKind, EmbeddedAdmin, NamespaceConfig, Subsystem, SubsystemConfig,
};
use towline_nvme::resources::{Resource, VirtualizationAction};
use towline_vfio_user::nvme::{NvmeFunction, NvmeFunctionOptions};
use towline_vfio_user::{ServerOptions, VfioUserServer};

#[derive(Default)]
struct Arguments {
    disks: Vec<(PathBuf, u64)>,
    functions: Vec<(String, PathBuf)>,
    vfs: u16,
    map_any: bool,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut found = Arguments { vfs: 4, ..Arguments::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--disk" => {
                let disk = words.next().ok_or("--disk FILE:BYTES")?;
                let (path, bytes) = disk.rsplit_once(':').ok_or("--disk FILE:BYTES")?;
                found.disks.push((path.into(), bytes.parse()?));
            }
            "--vfs" => found.vfs = words.next().ok_or("--vfs N")?.parse()?,
            "--map-any" => found.map_any = true,
            _ => {
                let (kind, path) = word.split_once('=').ok_or("KIND=SOCKET")?;
                found.functions.push((kind.into(), path.into()));
            }
        }
    }
    Ok(found)
}

fn namespace(number: u8, path: &Path, size_bytes: u64) -> Result<NamespaceConfig, Box<dyn Error>> {
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    if file.metadata()?.len() < size_bytes {
        file.set_len(size_bytes)?;
    }
    let (nguid, uuid) = ([number; 16], [0x40 | number; 16]);
    Ok(NamespaceConfig { path: path.into(), size_bytes, lba_size_bytes: 512, nguid, uuid, shared: true })
}

/// A controller of that kind, ready for a guest: resources, namespaces, online.
fn provision(
    subsystem: &Subsystem,
    admin: Option<&AdminClient>,
    kind: &str,
    taken: &[u16],
) -> Result<u16, Box<dyn Error>> {
    let free = |wanted: ControllerKind| {
        let all = subsystem.controllers();
        let found = all.iter().find(|c| c.kind() == wanted && !taken.contains(&c.cntlid()));
        found.map(|c| c.cntlid()).ok_or("no function of that kind is free")
    };
    let cntlid = match kind {
        "controlling" => return Ok(CONTROLLING_CNTLID),
        "pf" => return Ok(free(ControllerKind::Pf)?),
        "vf" => free(ControllerKind::Vf)?,
        "siov" => subsystem.create_siov()?,
        _ => return Err(format!("{kind} is not pf, vf, siov or controlling").into()),
    };
    let Some(admin) = admin else { return Ok(cntlid) };
    admin.virtualization_manage(VirtualizationAction::Assign, cntlid, Resource::Interrupts, 5)?;
    admin.virtualization_manage(VirtualizationAction::Assign, cntlid, Resource::Queues, 5)?;
    for nsid in 1..=subsystem.config().namespaces.len() {
        admin.namespace_attach(u32::try_from(nsid)?, &[cntlid])?;
    }
    admin.virtualization_manage(VirtualizationAction::Online, cntlid, Resource::Queues, 0)?;
    Ok(cntlid)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let namespaces: Result<Vec<_>, _> =
        (1..).zip(&arguments.disks).map(|(number, (path, bytes))| namespace(number, path, *bytes)).collect();
    let config = SubsystemConfig {
        uuid: [0x70; 16],
        namespaces: namespaces?,
        max_vfs: arguments.vfs,
        ..SubsystemConfig::default()
    };
    let subsystem = Subsystem::open(config)?;
    if arguments.vfs > 0 {
        subsystem.set_num_vfs(arguments.vfs)?;
    }
    let controlling = arguments.functions.iter().any(|(kind, _)| kind == "controlling");
    let admin = if controlling { None } else { Some(AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem)?))) };
    let options = ServerOptions { allow_shrinkable: arguments.map_any, ..ServerOptions::default() };
    let (mut servers, mut taken) = (Vec::new(), Vec::new());
    for (kind, path) in &arguments.functions {
        let cntlid = provision(&subsystem, admin.as_ref(), kind, &taken)?;
        taken.push(cntlid);
        let function = NvmeFunction::new(&subsystem, cntlid, &NvmeFunctionOptions::default())?;
        servers.push(VfioUserServer::start(path, Arc::new(function), options)?);
        println!("serving {kind} (controller {cntlid}) on {}", path.display());
    }
    for line in std::io::stdin().lock().lines() {
        if line?.trim() == "status" {
            servers.iter().for_each(|server| println!("{} {:?}", server.path().display(), server.status()));
        }
    }
    Ok(())
}
