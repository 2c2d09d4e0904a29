/** What a unit of the namespace holds; the layout is written down in crates/tenant/src/block.rs. */
import { BLANK, type Content } from './record.js';

/** Bytes of a unit. */
export const UNIT_BYTES = 4096;

/** "TWLBLOCK" */
const MAGIC = 0x4b43_4f4c_424c_5754n;
const blank = Buffer.alloc(UNIT_BYTES);

/** Says what `block`, read from `unit`, holds. Its address, its sequence and its checksum have to be right. */
export function inspectBlock(block: Buffer, unit: number): Content {
  if (block.equals(blank)) return BLANK;
  const seq = block.readBigUInt64LE(16);
  const valid =
    block.readBigUInt64LE(0) === MAGIC &&
    block.readBigUInt64LE(8) === BigInt(unit) &&
    seq > 0n &&
    seq <= BigInt(Number.MAX_SAFE_INTEGER) &&
    block.readUInt32LE(UNIT_BYTES - 4) === crc32c(block.subarray(0, UNIT_BYTES - 4));
  return valid ? { seq: Number(seq), epoch: block.readUInt32LE(24) } : undefined;
}

const table = Uint32Array.from({ length: 256 }, (_, n) => {
  let crc = n;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f6_3b78 : crc >>> 1;
  return crc >>> 0;
});

/** CRC32C (Castagnoli), as iSCSI has it: RFC 3720, appendix B.4. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (table[(crc ^ byte) & 0xff] ?? 0);
  return (crc ^ 0xffff_ffff) >>> 0;
}
