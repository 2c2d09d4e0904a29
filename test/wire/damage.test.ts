/** `inspect` on streams that are not whole: damage is told, and nothing is thrown. */
import { readFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { inspect, summarise, type StreamItem } from '#towline/wire/index.js';
import { lines, towline } from '../support/cli.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

const HEADER_BYTES = 40;
const FRAME_HEADER_BYTES = 24;

async function items(stream: Uint8Array): Promise<StreamItem[]> {
  const found: StreamItem[] = [];
  for await (const item of inspect([stream])) found.push(item);
  return found;
}

async function isDamaged(stream: Uint8Array): Promise<boolean> {
  return (await items(stream)).at(-1)?.type === 'damage';
}

function flipped(stream: Uint8Array, at: number, bit: number): Uint8Array {
  const copy = new Uint8Array(stream);
  copy[at] = (copy[at] ?? 0) ^ (1 << bit);
  return copy;
}

/** Every one of `places` with one bit flipped has to be damage; the stream is whole before and after. */
async function flipEach(t: ExecutionContext, stream: Uint8Array, places: Iterable<number>): Promise<void> {
  t.false(await isDamaged(stream));
  for (const at of places) {
    const bit = 1 << ((at * 5) % 8);
    stream[at] = (stream[at] ?? 0) ^ bit;
    if (!(await isDamaged(stream))) t.fail(`byte ${at}, bit mask ${bit}: taken for whole`);
    stream[at] = (stream[at] ?? 0) ^ bit;
  }
  t.false(await isDamaged(stream));
}

/** Where each frame begins, and the end. By the layout in docs/guides/streams.md, so that the reader under test has no say in it. */
function frameStarts(stream: Uint8Array): number[] {
  const view = new DataView(stream.buffer, stream.byteOffset, stream.byteLength);
  const starts: number[] = [];
  let at = HEADER_BYTES;
  while (at < stream.length) {
    starts.push(at);
    at += FRAME_HEADER_BYTES + view.getUint32(at + 12, true);
  }
  if (at !== stream.length) throw new Error('the recording does not end with a frame');
  return [...starts, at];
}

async function recorded(t: ExecutionContext): Promise<Uint8Array> {
  const pair = new Pair(t, 64n << 10n);
  for (const page of [0n, 3n]) pair.memory.source.write(page * 4096n, new Uint8Array(100).fill(Number(page) + 1));
  const source = new TsDevice('d', { ballastBytes: 300 });
  const destination = new TsDevice('d', { uuid: source.uuid, ballastBytes: 300 });
  const record = join(pair.directory, 'stream');
  const settled = await pair.move(source, destination, { source: { record } });
  t.is(settled.source.status, 'fulfilled', String((settled.source as PromiseRejectedResult).reason));
  return new Uint8Array(await readFile(record));
}

test('a recording is whole, and what measures the bandwidth has a name', async (t) => {
  const stream = await recorded(t);
  const found = await items(stream);
  const types = new Set(found.map((item) => item.type));
  for (const type of ['header', 'section-begin', 'filler', 'pages', 'state-chunk', 'round-end', 'manifest'] as const) {
    t.true(types.has(type), type);
  }
  t.false(types.has('skipped'));
  t.false(types.has('damage'));
  const end = found.findIndex((item) => item.type === 'stream-end');
  t.true(end > 0);
});

test('a recording that ends too early is damaged, wherever that is', async (t) => {
  const stream = await recorded(t);
  const starts = frameStarts(stream);
  const cuts = new Set([0, 1, HEADER_BYTES - 1, HEADER_BYTES]);
  for (const [index, start] of starts.entries()) {
    const end = starts[index + 1];
    if (end === undefined) break;
    // Between frames, within the header of a frame, right after it, within its payload, one byte before its end.
    for (const cut of [start, start + 1, start + 12, start + 23, start + 24, (start + 24 + end) >> 1, end - 1])
      if (cut < end) cuts.add(cut);
  }
  for (const cut of cuts) {
    if (cut >= stream.length) continue;
    const found = await items(stream.subarray(0, cut));
    t.is(found.at(-1)?.type, 'damage', `cut at ${cut} of ${stream.length}`);
    t.is(found.filter((item) => item.type === 'damage').length, 1);
  }
  t.true(cuts.size > 40);
});

test('a flipped bit in any frame of a recording is damage', async (t) => {
  const stream = await recorded(t);
  const starts = frameStarts(stream);
  const view = new DataView(stream.buffer, stream.byteOffset, stream.byteLength);
  const places = new Set<number>(Array.from({ length: HEADER_BYTES }, (_, at) => at));
  let fillers = 0;
  for (const [index, start] of starts.slice(0, -1).entries()) {
    // Filler is most of the frames, and all alike.
    if (view.getUint16(start, true) === 0x7f01 && ++fillers > 2) continue;
    const end = starts[index + 1] ?? 0;
    for (let at = start; at < Math.min(end, start + FRAME_HEADER_BYTES); at += 1) places.add(at);
    const payload = start + FRAME_HEADER_BYTES;
    if (end > payload) for (const at of [payload, (payload + end) >> 1, end - 1]) places.add(at);
  }
  t.true(places.size > 300);
  await flipEach(t, stream, places);
});

// Every bit of it is a test of crates/core; here each byte meets the way through JavaScript.
test('every truncation and a flipped bit in every byte of the golden stream is damage', async (t) => {
  const golden = new Uint8Array(
    readFileSync(new URL('../../crates/core/tests/data/golden-v1.towline', import.meta.url)),
  );
  for (let length = 0; length < golden.length; length += 1) {
    if (!(await isDamaged(golden.subarray(0, length)))) t.fail(`${length} bytes are taken for whole`);
  }
  await flipEach(t, golden, golden.keys());
});

test('noise is damage, too, in any cuts', async (t) => {
  let seed = 1;
  const noise = Uint8Array.from({ length: 5000 }, () => (seed = (seed * 48_271) % 0x7fff_ffff) & 0xff);
  const golden = new Uint8Array(
    readFileSync(new URL('../../crates/core/tests/data/golden-v1.towline', import.meta.url)),
  );
  for (const prefix of [0, 8, HEADER_BYTES, 100]) {
    const stream = new Uint8Array([...golden.subarray(0, prefix), ...noise]);
    const pieces = Array.from({ length: Math.ceil(stream.length / 7) }, (_, i) => stream.subarray(i * 7, i * 7 + 7));
    const summary = await summarise(inspect(pieces));
    t.is(typeof summary.damage, 'string', `after ${prefix} bytes`);
  }
});

test('the command ends with 1 on damage, with 0 otherwise', async (t) => {
  const stream = await recorded(t);
  const path = join(new Pair(t, 4096n).directory, 'recorded');
  const starts = frameStarts(stream);
  const middle = starts[starts.length >> 1] ?? 0;
  for (const [what, bytes, code] of [
    ['whole', stream, 0],
    ['empty', stream.subarray(0, 0), 1],
    ['cut between two frames', stream.subarray(0, middle), 1],
    ['cut within a frame', stream.subarray(0, middle + 30), 1],
    ['flipped', flipped(stream, middle + 40, 3), 1],
    ['not a stream', Buffer.from('#!/bin/sh\n'), 1],
  ] as const) {
    await writeFile(path, bytes);
    const { code: got, out, err } = await towline('', 'inspect', path, '--summary', '--json');
    t.is(got, code, `${what}: ${out.slice(-500)}${err}`);
    const { summary } = lines(out).at(-1) as { summary: { damage?: string } };
    t.is(summary.damage === undefined, code === 0, what);
    t.is((await towline('', 'inspect', path)).code, code, what);
  }
});
