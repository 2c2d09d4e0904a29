import { randomUUID } from 'node:crypto';
import test from 'ava';
import { letThrough, Splitter, type Cut, type Frame } from './guest/relay.js';

const frame = (type: number, payload: Buffer | string): Buffer => {
  const header = Buffer.alloc(24);
  header.writeUInt16LE(type, 0);
  header.writeUInt32LE(payload.length, 12);
  return Buffer.concat([header, Buffer.from(payload)]);
};
const say = (type: string) => frame(7, JSON.stringify({ nonce: randomUUID(), type }));

const STREAM = Buffer.concat([
  Buffer.alloc(40, 1),
  say('offer'),
  say('ready'),
  frame(3, Buffer.alloc(5000, 2)),
  frame(8, ''),
]);
const NAMES = ['header', 'offer', 'ready', 'pages', 'stream-end'];

/** The stream in pieces of `piece` bytes: what of it goes through where it is cut, and which frames began. */
function relay(piece: number, cut?: Cut): { passed: Buffer; begun: Frame[]; isCut: boolean } {
  const [passed, begun]: [Buffer[], Frame[]] = [[], []];
  const splitter = new Splitter(
    (one) => {
      begun.push(one);
      return letThrough(cut, 'there', one);
    },
    (bytes) => passed.push(Buffer.from(bytes)),
  );
  let isCut = false;
  for (let at = 0; at < STREAM.length && !isCut; at += piece) isCut = splitter.take(STREAM.subarray(at, at + piece));
  return { passed: Buffer.concat(passed), begun, isCut };
}

test('what is not cut goes through whole, whatever pieces it comes in', (t) => {
  for (const piece of [1, 7, 24, 41, 1000, STREAM.length]) {
    const { passed, begun, isCut } = relay(piece, { direction: 'back', frame: 'pages' });
    t.deepEqual(passed, STREAM);
    t.deepEqual(
      begun.map((one) => one.frame),
      NAMES,
    );
    t.false(isCut);
  }
});

test('it is cut in the frame that was asked for, at the byte', (t) => {
  const starts = new Map<string, number>();
  let at = 0;
  for (const { frame: name, bytes } of relay(1).begun) {
    starts.set(name, at);
    at += bytes;
  }
  const size = 24 + 5000;
  for (const piece of [1, 7, 24, 41, 1000, STREAM.length])
    for (const [name, bytes, expected] of [
      ['header', undefined, 0],
      ['header', 20, 20],
      ['ready', undefined, 0],
      ['ready', 5, 5],
      ['pages', 'half', size / 2],
      ['pages', 'all-but-one', size - 1],
      ['pages', size + 10, size - 1],
      ['stream-end', 'all-but-one', 23],
    ] as const) {
      const { passed, isCut } = relay(piece, {
        direction: 'there',
        frame: name,
        ...(bytes === undefined ? {} : { bytes }),
      });
      t.is(passed.length, (starts.get(name) ?? 0) + expected, `${name} ${bytes} ${piece}`);
      t.true(isCut);
    }
});
