/**
 * Names of commands and statuses of NVM Express (Base 2.1 and NVM Command Set 1.1), as a {@link FaultRule} may use them. The numbers
 * are those of crates/nvme (`command.rs`, `status.rs`).
 */

/** Opcodes of admin commands. */
export const adminOpcodes = {
  'delete-io-sq': 0x00,
  'create-io-sq': 0x01,
  'get-log-page': 0x02,
  'delete-io-cq': 0x04,
  'create-io-cq': 0x05,
  identify: 0x06,
  abort: 0x08,
  'set-features': 0x09,
  'get-features': 0x0a,
  'async-event-request': 0x0c,
  'namespace-attachment': 0x15,
  'virtualization-management': 0x1c,
  'track-send': 0x3d,
  'track-receive': 0x3e,
  'migration-send': 0x41,
  'migration-receive': 0x42,
} as const satisfies Readonly<Record<string, number>>;

/** Opcodes of I/O commands. */
export const ioOpcodes = {
  flush: 0x00,
  write: 0x01,
  read: 0x02,
  'write-zeroes': 0x08,
  'dataset-management': 0x09,
} as const satisfies Readonly<Record<string, number>>;

/** Statuses, SCT << 8 | SC. Any other is given by its number. */
export const statusNames = {
  'invalid-opcode': 0x001,
  'invalid-field': 0x002,
  'data-transfer-error': 0x004,
  'internal-error': 0x006,
  'abort-requested': 0x007,
  'command-interrupted': 0x021,
  'transient-transport-error': 0x022,
  'lba-out-of-range': 0x080,
  'capacity-exceeded': 0x081,
  'namespace-not-ready': 0x082,
  'not-enough-resources': 0x138,
  'controller-not-suspended': 0x13a,
  'write-fault': 0x280,
  'unrecovered-read-error': 0x281,
  'access-denied': 0x286,
  'internal-path-error': 0x300,
} as const satisfies Readonly<Record<string, number>>;
