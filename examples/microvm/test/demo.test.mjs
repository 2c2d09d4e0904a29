// What of the demo is arithmetic: pictures, damage on purpose, frames. None of it needs KVM.
import { Duplex } from 'node:stream';
import test from 'ava';
import { activity, bars } from '../dist/microvm/demo/plot.js';
import { forgetful } from '../dist/microvm/demo/sabotage.js';
import { Connection } from '../dist/microvm/src/connection.js';

test('a pause is a blank in the picture', (t) => {
  const samples = [];
  let done = 0;
  for (let atMs = 0; atMs <= 1000; atMs += 10) {
    if (atMs <= 500 || atMs > 700) done += 10;
    samples.push({ atMs, heartbeats: done, pagesWritten: done, ios: done });
  }
  const rows = activity(samples, 0, 1000, 10).split('\n').slice(0, 3);
  for (const row of rows) t.regex(row, /\|@@@@@ {2}@@@\| up to 1000\/s$/);
  // Without samples nothing is drawn, and nothing fails.
  t.regex(activity([], 0, 1000, 10), /\| {10}\|/);
});

test('bars are as long as their logarithms', (t) => {
  const [long, short, none] = bars(
    [
      { title: 'a', value: 1023, text: 'x' },
      { title: 'b', value: 31, text: 'y' },
      { title: 'c', value: 0, text: 'z' },
    ],
    10,
  ).split('\n');
  t.regex(long ?? '', /\|#{10}\| x$/);
  t.regex(short ?? '', /\|#{5} {5}\| y$/);
  t.regex(none ?? '', /\| {10}\| z$/);
});

test('a forgetful source leaves out what it is to be quiet about, and nothing else', async (t) => {
  const ranges = [
    [0n, 10n],
    [15n, 10n],
    [30n, 5n],
    [60n, 4n],
  ].map(([gpa, len]) => ({ gpa, len }));
  const source = { start: async () => 4096, harvest: async () => ranges, stop: async () => {}, close: async () => {} };
  const told = await forgetful(source, [
    { gpa: 5n, len: 15n },
    { gpa: 30n, len: 5n },
    { gpa: 61n, len: 1n },
  ]).harvest();
  t.deepEqual(
    told.map(({ gpa, len }) => [gpa, len]),
    [
      [0n, 5n],
      [20n, 5n],
      [60n, 1n],
      [62n, 2n],
    ],
  );
  t.deepEqual(await forgetful(source, []).harvest(), ranges);
});

/** Two ends of a stream that hands out what is written in pieces of `size` bytes. @param {number} size */
function ends(size) {
  /** @type {Duplex[]} */
  const both = [];
  for (const other of [1, 0])
    both.push(
      new Duplex({
        read() {},
        write(chunk, _encoding, done) {
          for (let at = 0; at < chunk.length; at += size) both[other]?.push(chunk.subarray(at, at + size));
          done();
        },
        final(done) {
          both[other]?.push(null);
          done();
        },
      }),
    );
  return both;
}

/** Memory that notes what is written. */
class Memory {
  /** @type {[bigint, string][]} */
  written = [];

  /** @param {bigint} gpa @param {number} len */
  read(gpa, len) {
    return Buffer.alloc(len, Number(gpa));
  }

  /** @param {bigint} gpa @param {Uint8Array} data */
  write(gpa, data) {
    this.written.push([gpa, Buffer.from(data).toString('hex')]);
  }
}

for (const size of [1, 5, 13, 14, 1 << 16])
  test(`frames arrive whole and in order, in pieces of ${size}`, async (t) => {
    const [a, b] = ends(size);
    const [here, there] = [new Memory(), new Memory()];
    // @ts-expect-error It is no more of a guest's memory than a connection needs.
    const [sender, taker] = [new Connection(a, here), new Connection(b, there)];
    await sender.say('begin');
    await sender.link.send(Buffer.from('towline'));
    await sender.sendRuns([
      { gpa: 7n, len: 3n },
      { gpa: 9n, len: 2n },
    ]);
    await sender.say('');
    await sender.say('end');
    t.deepEqual([await taker.hear(), await taker.hear(), await taker.hear()], ['begin', '', 'end']);
    t.deepEqual(there.written, [
      [7n, '070707'],
      [9n, '0909'],
    ]);
    t.is(Buffer.from(await taker.link.receive(3)).toString(), 'tow');
    t.is(Buffer.from(await taker.link.receive(100)).toString(), 'line');
    t.is(sender.sentMemoryBytes, 5);
    sender.end();
    t.is((await taker.link.receive(1)).length, 0);
    await t.throwsAsync(taker.hear(), { message: /hung up/ });
    await t.throwsAsync(sender.say('more'), { message: /ended/ });
  });

test('a frame that can not be is the end of the connection', async (t) => {
  const [a, b] = ends(64);
  // @ts-expect-error As above.
  const taker = new Connection(b, new Memory());
  const frame = Buffer.alloc(13);
  frame.writeUInt32LE(0xffff_ffff, 9);
  a?.write(frame);
  await t.throwsAsync(taker.hear(), { message: /hung up/ });
});
