import test from 'ava';
import { Ledger, mergeLogs, type Hold, type Verdict } from '../../dist-examples/shared/ledger.js';
import { BLANK, type Content, type LogRecord } from '../../dist-examples/shared/record.js';

/** One tenant whose device and disk obey, until a test breaks something. Time goes on by a millisecond a record. */
class World {
  readonly records: LogRecord[] = [];
  readonly disk = new Map<number, Content>();
  host = 1;
  epoch = 1;
  seq = 1;
  ms = 0;

  log(record: Partial<LogRecord> & Pick<LogRecord, 'kind'>): void {
    this.ms++;
    this.records.push({
      host: this.host,
      epoch: this.epoch,
      seq: 0,
      unit: 0,
      units: 0,
      content: BLANK,
      opcode: 0,
      status: 0,
      timeNs: BigInt(this.ms) * 1_000_000n,
      nextSeq: this.seq,
      ...record,
    });
  }

  /** A write that the device executes and the tenant is not told of yet. Returns how to tell. */
  submit(unit: number, units = 1): () => void {
    const content = { seq: this.seq++, epoch: this.epoch };
    for (let n = 0; n < units; n++) this.disk.set(unit + n, content);
    return () => this.log({ kind: 'write', seq: content.seq, unit, units, content });
  }

  write(unit: number, units = 1): void {
    this.submit(unit, units)();
  }

  read(unit: number, units = 1): void {
    const seq = this.seq++;
    for (let n = 0; n < units; n++)
      this.log({ kind: 'read', seq, unit: unit + n, units: 1, content: this.#at(unit + n) });
  }

  flush(): void {
    this.log({ kind: 'flush', seq: this.seq++ });
  }

  /** Stops here, starts there. */
  move(host = 2): void {
    this.log({ kind: 'stopped' });
    this.host = host;
    this.epoch++;
    this.log({ kind: 'started' });
  }

  judge(holds: Hold[] = []): Verdict {
    const ledger = new Ledger();
    for (const record of this.records) ledger.take(record);
    for (let unit = 0; unit < 64; unit++) ledger.look(unit, this.#at(unit));
    return ledger.verdict(holds);
  }

  #at(unit: number): Content {
    return this.disk.has(unit) ? this.disk.get(unit) : BLANK;
  }
}

/** Some work at one host, a command in flight across the move, some work at the other. */
function moved(
  change: { before?: (w: World) => void; after?: (w: World) => void; last?: (w: World) => void } = {},
): World {
  const world = new World();
  world.log({ kind: 'started' });
  world.write(0, 16);
  world.read(0, 16);
  world.write(4, 2);
  world.flush();
  world.read(30);
  const inFlight = world.submit(20, 3);
  change.before?.(world);
  world.move();
  inFlight();
  world.read(20, 3);
  world.write(5);
  world.write(40);
  change.after?.(world);
  world.read(0, 8);
  world.log({ kind: 'drained' });
  change.last?.(world);
  world.log({ kind: 'stopped' });
  return world;
}

const clean = { lost: 0, duplicated: 0, corrupted: 0, owners: 1 };

/** That exactly `wrong` is wrong. */
function judged(world: World, wrong: Partial<typeof clean> = {}): [actual: unknown, expected: unknown] {
  const { io, owners } = world.judge();
  const { lost, duplicated, corrupted } = io;
  return [
    { lost, duplicated, corrupted, owners },
    { ...clean, ...wrong },
  ];
}

test('a tenant that moves unharmed is clean, and every command counts once', (t) => {
  const world = moved();
  t.deepEqual(...judged(world));
  const verdict = world.judge();
  t.is(verdict.io.completed, 10);
  t.true(verdict.drained);
  t.deepEqual(verdict.samples, []);
});

test('a tenant that stays and goes on is clean', (t) => {
  const world = new World();
  world.log({ kind: 'started' });
  world.write(1);
  world.log({ kind: 'stopped' });
  world.log({ kind: 'started' });
  world.read(1);
  world.log({ kind: 'drained' });
  t.deepEqual(...judged(world));
  t.is(world.judge().tenantPauseMs, 3);
});

test('there and back again is one owner at a time', (t) => {
  const world = moved({ after: (w) => [w.move(1), w.write(5), w.move(2), w.read(5)] });
  t.deepEqual(...judged(world));
});

test('a lost completion is one lost, whether it was executed or not', (t) => {
  t.deepEqual(...judged(moved({ after: (w) => w.submit(50, 4) }), { lost: 1 }));
  t.deepEqual(...judged(moved({ after: (w) => w.seq++ }), { lost: 1 }));
  t.deepEqual(...judged(moved({ before: (w) => w.submit(50, 4) }), { lost: 1 }));
  const old = moved({ after: (w) => (w.write(50), w.submit(50), w.disk.set(50, { seq: w.seq - 2, epoch: w.epoch })) });
  t.deepEqual(...judged(old, { lost: 1 }));
});

test('a command that ends with an error is one lost, whatever is on the disk then', (t) => {
  const error = (w: World) => w.log({ kind: 'error', seq: w.seq++, unit: 4, units: 2, opcode: 1, status: 0x281 });
  t.deepEqual(...judged(moved({ after: error }), { lost: 1 }));
  t.deepEqual(...judged(moved({ after: (w) => (error(w), w.disk.set(4, undefined)) }), { lost: 1 }));
});

test('an acknowledged write that the disk never had is one lost, however many units it has', (t) => {
  const world = moved({ after: (w) => (w.write(50, 4), [50, 51, 52, 53].forEach((u) => w.disk.delete(u))) });
  t.deepEqual(...judged(world, { lost: 1 }));
  const seenByRead = moved({ after: (w) => (w.write(50), w.disk.delete(50), w.read(50)) });
  t.deepEqual(...judged(seenByRead, { lost: 1 }));
});

test('a unit that is blank again is one lost, seen before or not', (t) => {
  t.deepEqual(...judged(moved({ last: (w) => w.disk.delete(0) }), { lost: 1 }));
  t.deepEqual(...judged(moved({ last: (w) => w.disk.delete(40) }), { lost: 1 }));
});

test('a repeated completion is one duplicated', (t) => {
  t.deepEqual(...judged(moved({ after: (w) => w.log({ kind: 'duplicate' }) }), { duplicated: 1 }));
});

test('a completion that both hosts took is one duplicated', (t) => {
  const world = moved({
    before: (w) => w.write(45),
    after: (w) => w.log({ kind: 'write', seq: 7, unit: 45, units: 1, content: { seq: 7, epoch: 1 } }),
  });
  t.deepEqual(...judged(world, { duplicated: 1 }));
});

test('an older write over one that was seen is one duplicated', (t) => {
  // Units 4 and 5 held version 1 of epoch 1 first.
  const replay = (w: World) => [4, 5].forEach((u) => w.disk.set(u, { seq: 1, epoch: 1 }));
  t.deepEqual(...judged(moved({ last: replay }), { duplicated: 1 }));
});

test('a write of an earlier epoch that the tenant never knew of is one duplicated', (t) => {
  t.deepEqual(...judged(moved({ last: (w) => w.disk.set(60, { seq: 900, epoch: 1 }) }), { duplicated: 1 }));
});

test('a second owner that only flushes shows in owners alone', (t) => {
  const strange = (w: World) => {
    const { host, epoch, seq } = w;
    for (const again of [1, 2]) {
      w.host = 1;
      w.epoch = again;
      w.log({ kind: 'started' });
      w.flush();
      w.log({ kind: 'stopped' });
    }
    Object.assign(w, { host, epoch, seq });
  };
  t.deepEqual(...judged(moved({ after: strange }), { owners: 2 }));
});

test('what a second owner writes, once found, is duplicated beside', (t) => {
  const strange = (w: World) => {
    const { host, epoch, seq } = w;
    Object.assign(w, { host: 1, epoch: 1 });
    w.write(40);
    Object.assign(w, { host, epoch, seq });
    w.read(40);
  };
  t.deepEqual(...judged(moved({ after: strange }), { owners: 2, duplicated: 1 }));
});

test('an invalid block is one corrupted, by a read and by the disk', (t) => {
  t.deepEqual(...judged(moved({ last: (w) => w.disk.set(0, undefined) }), { corrupted: 1 }));
  t.deepEqual(...judged(moved({ last: (w) => w.disk.set(63, undefined) }), { corrupted: 1 }));
  t.deepEqual(...judged(moved({ after: (w) => (w.disk.set(3, undefined), w.read(3)) }), { corrupted: 1 }));
});

test('a version that the unit never had is one corrupted', (t) => {
  t.deepEqual(...judged(moved({ last: (w) => w.disk.set(7, w.disk.get(40)) }), { corrupted: 1 }));
  t.deepEqual(...judged(moved({ last: (w) => w.disk.set(7, { seq: 900, epoch: 2 }) }), { corrupted: 1 }));
  t.deepEqual(...judged(moved({ last: (w) => w.disk.set(0, { seq: 1, epoch: 2 }) }), { corrupted: 1 }));
});

test('a damaged unit that is written again counts anew', (t) => {
  const world = moved({
    after: (w) => (w.disk.set(3, undefined), w.read(3), w.write(3)),
    last: (w) => w.disk.set(3, undefined),
  });
  t.deepEqual(...judged(world, { corrupted: 2 }));
});

test('a tenant that was not drained is told so', (t) => {
  const world = new World();
  world.log({ kind: 'started' });
  world.submit(1);
  t.false(world.judge().drained);
  world.log({ kind: 'drained' });
  t.true(world.judge().drained);
  world.write(3);
  t.false(world.judge().drained);
});

test('the pause is between the last completion there and the first here, without the hold', (t) => {
  const world = moved();
  // The read before the move is record 21; then stopped, started, and the write in flight.
  t.is(world.judge().tenantPauseMs, 3);
  const last = BigInt(world.records.findIndex((r) => r.kind === 'stopped')) * 1_000_000n;
  t.is(world.judge([{ fromNs: last + 1_000_000n, toNs: last + 1_500_000n }]).tenantPauseMs, 2.5);
  t.is(world.judge([{ fromNs: 0n, toNs: last + 1_000_000n }]).tenantPauseMs, 2);
  t.is(world.judge([{ fromNs: 0n, toNs: 1n }]).tenantPauseMs, 3);
});

test('logs are merged by time, and each keeps its order', (t) => {
  const world = moved();
  const logs = [1, 2].map((host) => world.records.filter((r) => r.host === host));
  t.deepEqual(mergeLogs(logs.toReversed()), world.records);
});

/** A tenant whose power fails with a write in flight to a unit that it wrote before; nothing says that it ended. */
function cut(inFlight: (world: World) => void): Verdict {
  const world = new World();
  world.log({ kind: 'started' });
  for (let unit = 0; unit < 8; unit++) world.write(unit);
  inFlight(world);
  return world.judge();
}

test('after a power failure, what was in flight may be on the disk or not', (t) => {
  for (const there of [true, false]) {
    const verdict = cut((world) => {
      const before = world.disk.get(3);
      world.submit(3);
      if (!there) world.disk.set(3, before);
    });
    t.like(verdict, { drained: false, owners: 1, io: { completed: 8, lost: 0, duplicated: 0, corrupted: 0 } });
  }
});

test('after a power failure, what was acknowledged is there', (t) => {
  const verdict = cut((world) => world.disk.set(3, BLANK));
  t.like(verdict, { drained: false, io: { completed: 8, lost: 1, duplicated: 0, corrupted: 0 } });
});

test('what never completed can not be older than what was acknowledged after it', (t) => {
  const verdict = cut((world) => {
    world.submit(6);
    world.write(5);
    // The command in flight was submitted before that write, so it never was for this unit.
    world.disk.set(5, { seq: 9, epoch: 1 });
  });
  t.is(verdict.io.lost + verdict.io.duplicated + verdict.io.corrupted, 1);
});

test('a tenant that stood still and was never let go on did not run on', (t) => {
  const w = new World();
  w.write(1);
  w.log({ kind: 'stopped' });
  w.log({ kind: 'drained' });
  t.false(w.judge().ranOn);
  const well = new World();
  well.write(1);
  well.log({ kind: 'stopped' });
  well.log({ kind: 'started' });
  well.write(2);
  well.log({ kind: 'drained' });
  t.true(well.judge().ranOn);
});
