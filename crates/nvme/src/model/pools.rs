//! Virtualization Management: queue pairs and interrupt vectors for secondary controllers, and what takes them away again
//! (Base 2.1, 5.1.29 and 8.2.6).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::{MAX_QUEUES_PER_FUNCTION, MAX_VECTORS_PER_FUNCTION};
use super::controller::{Controller, ControllerKind};
use super::front::Presence;
use super::signal::lock;
use super::subsystem::{CONTROLLING_CNTLID, Inner};
use crate::resources::{
    PrimaryCapabilities, Resource, SecondaryController, VirtualizationAction, VirtualizationManagement,
};
use crate::status::StatusCode;

/// What secondary controllers have been given.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    /// Queue pairs and vectors by secondary controller.
    pub assigned: BTreeMap<u16, (u16, u16)>,
    /// Flexible resources of the controlling PF: now, and from the next function level reset on.
    pub primary: (u16, u16),
    pub primary_next: (u16, u16),
    pub num_vfs: u16,
}

impl Pools {
    /// Queue pairs and vectors that secondary controllers have.
    fn used(&self) -> (u32, u32) {
        let sum = |(q, v): (u32, u32), (_, (nq, nv)): (&u16, &(u16, u16))| (q + u32::from(*nq), v + u32::from(*nv));
        self.assigned.iter().fold((0, 0), sum)
    }

    /// What the controlling PF has or will have.
    fn primary_claim(&self) -> (u32, u32) {
        let most = |now: u16, next: u16| u32::from(now.max(next));
        (most(self.primary.0, self.primary_next.0), most(self.primary.1, self.primary_next.1))
    }
}

/// How a secondary controller answers while it is not online.
pub(crate) fn offline_presence(controller: &Controller, num_vfs: u16) -> Presence {
    if controller.kind() == ControllerKind::Vf && controller.virtual_function() > num_vfs {
        Presence::Absent
    } else {
        Presence::Offline
    }
}

impl Inner {
    pub(crate) fn capabilities(&self) -> PrimaryCapabilities {
        let pools = lock(&self.pools);
        let (vq, vi) = pools.used();
        PrimaryCapabilities {
            cntlid: CONTROLLING_CNTLID,
            crt: 0b11,
            vqfrt: self.config.flexible_queues,
            vqrfa: vq,
            vqrfap: pools.primary.0,
            vqprt: self.config.pf_queues,
            vqfrsm: self.config.max_queues_per_function,
            vqgran: 1,
            vifrt: self.config.flexible_vectors,
            virfa: vi,
            virfap: pools.primary.1,
            viprt: self.config.pf_vectors,
            vifrsm: self.config.max_vectors_per_function,
            vigran: 1,
            ..PrimaryCapabilities::default()
        }
    }

    pub(crate) fn secondaries(&self) -> Vec<SecondaryController> {
        let controllers = self.secondary_controllers();
        let pools = lock(&self.pools);
        let entry = |controller: &Arc<Controller>| {
            let (nvq, nvi) = pools.assigned.get(&controller.cntlid()).copied().unwrap_or_default();
            SecondaryController {
                scid: controller.cntlid(),
                pcid: CONTROLLING_CNTLID,
                scs: u8::from(controller.online()),
                vfn: controller.virtual_function(),
                nvq,
                nvi,
            }
        };
        controllers.iter().map(entry).collect()
    }

    /// Virtualization Management. Returns how many resources the command changed.
    pub(crate) fn manage(&self, command: &VirtualizationManagement) -> Result<u16, StatusCode> {
        if command.action == VirtualizationAction::AllocatePrimary {
            return self.allocate_primary(command);
        }
        // Whoever makes or removes a function holds the pools: what is found now is there until the command is done.
        let mut pools = lock(&self.pools);
        let secondary =
            self.controller(command.cntlid).filter(|c| matches!(c.kind(), ControllerKind::Vf | ControllerKind::Siov));
        let secondary = secondary.ok_or(StatusCode::InvalidControllerIdentifier)?;
        match command.action {
            VirtualizationAction::Assign => {
                if secondary.online() {
                    return Err(StatusCode::InvalidSecondaryControllerState);
                }
                self.assign(&mut pools, command)
            }
            VirtualizationAction::Offline => {
                pools.assigned.remove(&command.cntlid);
                let presence = offline_presence(&secondary, pools.num_vfs);
                secondary.with(|engine| engine.go_offline(presence));
                Ok(0)
            }
            _ => {
                let (queues, vectors) = pools.assigned.get(&command.cntlid).copied().unwrap_or_default();
                let enabled = offline_presence(&secondary, pools.num_vfs) == Presence::Offline;
                if secondary.online() {
                    return Ok(0);
                }
                // An admin queue and one for I/O, and a vector to say so.
                if queues < 2 || vectors < 1 || !enabled {
                    return Err(StatusCode::InvalidSecondaryControllerState);
                }
                secondary.with(|engine| engine.go_online(queues, vectors));
                Ok(0)
            }
        }
    }

    fn assign(&self, pools: &mut Pools, command: &VirtualizationManagement) -> Result<u16, StatusCode> {
        let (used_vq, used_vi) = pools.used();
        let (primary_vq, primary_vi) = pools.primary_claim();
        let had = pools.assigned.get(&command.cntlid).copied().unwrap_or_default();
        let (total, used, had_now, most) = match command.resource {
            Resource::Queues => {
                (self.config.flexible_queues, used_vq + primary_vq, had.0, self.config.max_queues_per_function)
            }
            Resource::Interrupts => {
                (self.config.flexible_vectors, used_vi + primary_vi, had.1, self.config.max_vectors_per_function)
            }
        };
        let free = total.saturating_sub(used) + u32::from(had_now);
        if command.count > most || u32::from(command.count) > free {
            return Err(StatusCode::InvalidNumberOfControllerResources);
        }
        let slot = pools.assigned.entry(command.cntlid).or_default();
        match command.resource {
            Resource::Queues => slot.0 = command.count,
            Resource::Interrupts => slot.1 = command.count,
        }
        Ok(command.count)
    }

    fn allocate_primary(&self, command: &VirtualizationManagement) -> Result<u16, StatusCode> {
        if command.cntlid != CONTROLLING_CNTLID {
            return Err(StatusCode::InvalidControllerIdentifier);
        }
        let mut pools = lock(&self.pools);
        let (used_vq, used_vi) = pools.used();
        let (total, used, private, most) = match command.resource {
            Resource::Queues => (self.config.flexible_queues, used_vq, self.config.pf_queues, MAX_QUEUES_PER_FUNCTION),
            Resource::Interrupts => {
                (self.config.flexible_vectors, used_vi, self.config.pf_vectors, MAX_VECTORS_PER_FUNCTION)
            }
        };
        if u32::from(command.count) > total.saturating_sub(used) || command.count > most.saturating_sub(private) {
            return Err(StatusCode::InvalidNumberOfControllerResources);
        }
        match command.resource {
            Resource::Queues => pools.primary_next.0 = command.count,
            Resource::Interrupts => pools.primary_next.1 = command.count,
        }
        Ok(command.count)
    }

    /// What a reset, disable or shutdown of the controlling function does to the rest. Returns the queue pairs and vectors that the
    /// controlling function has from now on, where that changes.
    pub(crate) fn primary_reset(&self, function_reset: bool) -> Option<(u16, u16)> {
        let mut pools = lock(&self.pools);
        pools.assigned.clear();
        if function_reset {
            pools.primary = pools.primary_next;
        }
        for controller in self.all() {
            match controller.kind() {
                ControllerKind::ControllingPf => {}
                ControllerKind::Pf => controller.with(|engine| {
                    engine.set_tracking(None);
                    engine.limiter.clear();
                }),
                ControllerKind::Vf | ControllerKind::Siov => {
                    let presence = offline_presence(&controller, pools.num_vfs);
                    controller.with(|engine| engine.go_offline(presence));
                }
            }
        }
        let (queues, vectors) = pools.primary;
        function_reset.then_some((self.config.pf_queues + queues, self.config.pf_vectors + vectors))
    }
}
