import test from 'ava';
import { crc32c, inspectBlock, UNIT_BYTES } from '../../dist-examples/shared/block.js';
import { BLANK, parseLog, RECORD_BYTES } from '../../dist-examples/shared/record.js';

/** A block as the tenant makes it, written down once more. */
function block(unit: number, seq: number, epoch: number): Buffer {
  const bytes = Buffer.alloc(UNIT_BYTES, 0x77);
  bytes.write('TWLBLOCK', 0, 'latin1');
  bytes.writeBigUInt64LE(BigInt(unit), 8);
  bytes.writeBigUInt64LE(BigInt(seq), 16);
  bytes.writeUInt32LE(epoch, 24);
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, UNIT_BYTES - 4)), UNIT_BYTES - 4);
  return bytes;
}

test('the checksum is CRC32C', (t) => {
  // RFC 3720, appendix B.4, and the usual check value.
  t.is(crc32c(Buffer.from('123456789')), 0xe306_9283);
  t.is(crc32c(Buffer.alloc(32)), 0x8a91_36aa);
  t.is(crc32c(Buffer.alloc(32, 0xff)), 0x62a8_ab43);
});

test('a whole block of its own address is a version, anything else is not', (t) => {
  const good = block(7, 300, 2);
  t.deepEqual(inspectBlock(good, 7), { seq: 300, epoch: 2 });
  t.is(inspectBlock(good, 8), undefined);
  t.is(inspectBlock(block(7, 0, 2), 7), undefined);
  t.deepEqual(inspectBlock(Buffer.alloc(UNIT_BYTES), 7), BLANK);
  for (const at of [0, 8, 16, 24, 28, 40, 2000, 4091, 4092, 4095]) {
    const bad = Buffer.from(good);
    bad[at] = (bad[at] ?? 0) ^ 0x10;
    t.is(inspectBlock(bad, 7), undefined, `byte ${at}`);
  }
});

test('records are read as they are documented', (t) => {
  const bytes = Buffer.alloc(2 * RECORD_BYTES);
  bytes.set([2, 9, 1, 0x21, 4, 3, 2, 1], 0);
  bytes.writeBigUInt64LE(11n, 8);
  bytes.writeBigUInt64LE(12n, 16);
  bytes.writeBigUInt64LE(13n, 24);
  bytes.writeUInt32LE(14, 32);
  bytes.writeUInt16LE(0x4281, 36);
  bytes.writeBigUInt64LE(1n << 62n, 40);
  bytes.writeBigUInt64LE(15n, 48);
  bytes.copy(bytes, RECORD_BYTES, 0, RECORD_BYTES);
  bytes.fill(0xff, RECORD_BYTES + 24, RECORD_BYTES + 32);
  const [first, second] = parseLog(bytes);
  t.deepEqual(first, {
    kind: 'read',
    host: 9,
    units: 1,
    opcode: 2,
    epoch: 0x0102_0304,
    seq: 11,
    unit: 12,
    content: { seq: 13, epoch: 14 },
    status: 0x4281,
    timeNs: 1n << 62n,
    nextSeq: 15,
  });
  t.is(second?.content, undefined);
});

test('a damaged log is refused', (t) => {
  t.throws(() => parseLog(Buffer.alloc(63)), { message: /within a record/ });
  t.throws(() => parseLog(Buffer.alloc(64)), { message: /unknown kind 0/ });
  t.throws(() => parseLog(Buffer.alloc(64, 9)), { message: /unknown kind 9/ });
  t.throws(() => parseLog(Buffer.concat([Buffer.of(1), Buffer.alloc(63, 0xff)])), { message: /impossible number/ });
});
