//! A subsystem with a function on a socket, and a guest's memory.
#![allow(dead_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towline_core::channel::ChannelError;
use towline_core::memory::GuestMemory;
use towline_linux::memory::{MappedMemory, memfd};
use towline_nvme::admin::AdminClient;
use towline_nvme::hmlm::{HmlmChannel, HmlmConfig};
use towline_nvme::model::{CONTROLLING_CNTLID, Controller, EmbeddedAdmin, NamespaceConfig, Subsystem, SubsystemConfig};
use towline_nvme::resources::{Resource, VirtualizationAction};
use towline_vfio_user::nvme::{NvmeFunction, NvmeFunctionOptions};
use towline_vfio_user::{ServerOptions, VfioUserServer};

use super::{Client, DmaLayout};

pub const MEMORY: u64 = 48 << 20;
pub const UNITS: u64 = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Controlling,
    Pf,
    Vf,
    Siov,
}

pub struct Rig {
    pub subsystem: Arc<Subsystem>,
    pub controller: Arc<Controller>,
    pub admin: Option<AdminClient>,
    pub server: VfioUserServer,
    /// The guest's memory, as the guest sees it.
    pub memory: Arc<MappedMemory>,
    pub file: OwnedFd,
    pub socket: PathBuf,
    pub disk: PathBuf,
}

impl Rig {
    pub fn new(kind: Kind) -> Self {
        Self::with(kind, &NvmeFunctionOptions::default(), ServerOptions::default())
    }

    pub fn with(kind: Kind, function: &NvmeFunctionOptions, options: ServerOptions) -> Self {
        let disk = scratch();
        std::fs::File::create(&disk).unwrap().set_len(UNITS * 4096).unwrap();
        Self::over(kind, disk, function, options)
    }

    /// Another subsystem over the same disk, with a function of the same kind and memory of its own: where a function of `self` can go.
    pub fn beside(&self, kind: Kind) -> Self {
        Self::over(kind, self.disk.clone(), &NvmeFunctionOptions::default(), ServerOptions::default())
    }

    fn over(kind: Kind, disk: PathBuf, function: &NvmeFunctionOptions, options: ServerOptions) -> Self {
        let socket = scratch().with_extension("sock");
        let namespace = NamespaceConfig {
            path: disk.clone(),
            size_bytes: UNITS * 4096,
            lba_size_bytes: 512,
            nguid: [1; 16],
            uuid: [2; 16],
            shared: true,
        };
        let config = SubsystemConfig { uuid: [3; 16], namespaces: vec![namespace], ..Default::default() };
        let subsystem = Subsystem::open(config).unwrap();
        let admin =
            (kind != Kind::Controlling).then(|| AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap())));
        let cntlid = admin.as_ref().map_or(CONTROLLING_CNTLID, |admin| provision(&subsystem, admin, kind));
        let controller = subsystem.controller(cntlid).unwrap();
        let nvme = Arc::new(NvmeFunction::new(&subsystem, cntlid, function).unwrap());
        let server = VfioUserServer::start(&socket, nvme, options).unwrap();
        let file = memfd("guest", MEMORY).unwrap();
        let memory = Arc::new(MappedMemory::new());
        memory.add_region(0, file.as_fd(), 0, MEMORY).unwrap();
        Self { subsystem, controller, admin, server, memory, file, socket, disk }
    }

    /// The channel of its device state, as a session has it.
    pub fn channel(&self) -> HmlmChannel {
        let controller = self.controller.clone();
        let reset = move || -> Result<(), ChannelError> {
            controller.flr();
            Ok(())
        };
        let admin = self.admin.clone().unwrap();
        HmlmChannel::open(admin, HmlmConfig::new(self.controller.cntlid()), Box::new(reset)).unwrap()
    }

    pub fn guest(&self) -> Option<Arc<dyn GuestMemory>> {
        Some(self.memory.clone() as Arc<dyn GuestMemory>)
    }

    /// A client with nothing mapped.
    pub fn client(&self, layout: DmaLayout) -> Arc<Client> {
        Arc::new(Client::new(&self.socket, self.guest(), layout))
    }

    /// A client that has given its memory, with or without its file, and lets the function do DMA.
    pub fn ready(&self, layout: DmaLayout, with_file: bool) -> Arc<Client> {
        let client = self.client(layout);
        client.map(0, MEMORY, 0, with_file.then(|| self.file.as_fd())).unwrap();
        client.bus_master(true);
        client
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.close();
        self.subsystem.close();
        let _ = std::fs::remove_file(&self.disk);
    }
}

fn scratch() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("towline-vu-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    std::env::temp_dir().join(name)
}

fn provision(subsystem: &Subsystem, admin: &AdminClient, kind: Kind) -> u16 {
    let cntlid = match kind {
        Kind::Controlling => return CONTROLLING_CNTLID,
        // A PF has shared namespaces attached from the start.
        Kind::Pf => return CONTROLLING_CNTLID + 1,
        Kind::Vf => {
            subsystem.set_num_vfs(1).unwrap();
            admin.secondary_controllers().unwrap().iter().find(|s| s.vfn == 1).unwrap().scid
        }
        Kind::Siov => subsystem.create_siov().unwrap(),
    };
    let manage = |action, resource, count| admin.virtualization_manage(action, cntlid, resource, count).unwrap();
    manage(VirtualizationAction::Assign, Resource::Queues, 4);
    manage(VirtualizationAction::Assign, Resource::Interrupts, 4);
    admin.namespace_attach(1, &[cntlid]).unwrap();
    manage(VirtualizationAction::Online, Resource::Queues, 0);
    cntlid
}

pub fn short_timeout() -> ServerOptions {
    ServerOptions { dma_timeout: Duration::from_millis(300), ..ServerOptions::default() }
}
