/** Faults and rates by the command line, with real processes. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { ControllingInfo } from '#towline/serve/protocol.js';
import { directory, lines, main, serve, towline } from '../support/cli.js';

async function rehearsal(socket: string): Promise<NonNullable<ControllingInfo['rehearsal']>> {
  const { controlling } = lines((await towline(socket, 'list', '--json')).out)[0] as unknown as {
    controlling: ControllingInfo[];
  };
  const info = controlling[0]?.rehearsal;
  if (info === null || info === undefined) throw new Error('no rehearsal is told');
  return info;
}

test.serial('a fault given to serve acts on the function that it names, once that exists', async (t) => {
  const path = await directory(t);
  const rule = 'function=controlling,opcode=track-send,nth=1,count=1,action=status:internal-error';
  const waits = 'function=v,opcode=write,action=delay:50ms';
  const a = await serve(t, path, 'a', '--fault', rule, '--fault', waits, '--rate', 'save=100MiB/s,load-latency=20ms');
  t.deepEqual(await rehearsal(a.socket), {
    faults: [
      { rule, active: true, hits: 0 },
      { rule: waits, active: false, hits: 0 },
    ],
    rates: { saveBytesPerSecond: 100 << 20, loadLatencyMs: 20 },
  });
  const uuid = crypto.randomUUID();
  const spec = ['provision', '--kind', 'vf', '--uuid', uuid, '--name', 'v', '--namespace', '1'];
  const b = await serve(t, path, 'b');
  for (const { socket } of [a, b]) t.like(await towline(socket, ...spec), { code: 0, err: '' });
  t.like((await rehearsal(a.socket)).faults[1], { active: true });

  // The first start of dirty tracking fails, as asked; the second is well.
  const link = join(path, 'link');
  for (const [outcome, code] of [
    ['rolled-back', 1],
    ['committed', 0],
  ] as const) {
    const receiving = towline(b.socket, 'receive', 'v', '--from', `unix://${link}`, '--json');
    while (!existsSync(link)) await new Promise((resolve) => setTimeout(resolve, 20));
    const moved = await towline(
      a.socket,
      'migrate',
      'v',
      '--to',
      `unix://${link}`,
      '--max-downtime',
      '60000',
      '--json',
    );
    t.is(moved.code, code, moved.out);
    if (code === 1) t.regex(moved.out, /"nvmeStatus":6\b|internal error/i);
    t.regex(moved.out, new RegExp(`"outcome":"${outcome}"`));
    await receiving;
  }
  // It has moved away: its rule waits again, and the one that was hit says so.
  t.like(await rehearsal(a.socket), { faults: [{ hits: 1 }, { active: false }] });
});

test.serial('at run time: set, counted, replaced, taken away', async (t) => {
  const path = await directory(t);
  const { socket } = await serve(t, path, 'a');
  t.deepEqual(await rehearsal(socket), { faults: [], rates: {} });
  // Identify goes through the controlling function each time that somebody asks for the reasons.
  const rule = 'opcode=identify,nth=1,count=2,action=delay:1ms';
  const set = await towline(socket, 'configure', 'embedded:a', '--fault', rule, '--rate', 'io-latency=1ms', '--json');
  t.is(set.code, 0, set.out);
  t.like(lines(set.out)[0], { address: 'embedded:a', rehearsal: { rates: { ioLatencyMs: 1 } } });
  await towline(socket, 'list');
  t.deepEqual(await rehearsal(socket), { faults: [{ rule, active: true, hits: 2 }], rates: { ioLatencyMs: 1 } });
  t.regex((await towline(socket, 'list')).out, /fault opcode=identify.*: hit 2 times\n {2}rate ioLatencyMs: 1/);
  // Only what is named changes.
  t.is((await towline(socket, 'configure', 'a', '--rate', 'none')).code, 0);
  t.deepEqual(await rehearsal(socket), { faults: [{ rule, active: true, hits: 2 }], rates: {} });
  t.is((await towline(socket, 'configure', 'a', '--fault', 'none')).code, 0);
  t.deepEqual(await rehearsal(socket), { faults: [], rates: {} });
});

test.serial('a command that hangs goes on once the rule is taken away', async (t) => {
  const path = await directory(t);
  const { socket } = await serve(t, path, 'a', '--fault', 'opcode=virtualization-management,count=0,action=hang');
  const child = spawn(process.execPath, [main, 'provision', '--kind', 'vf', '--socket', socket], { stdio: 'ignore' });
  const ended = once(child, 'exit') as Promise<[number | null]>;
  await t.throwsAsync(
    Promise.race([
      ended,
      new Promise((_, reject) => {
        setTimeout(() => reject(new Error('it hangs')), 700);
      }),
    ]),
    { message: 'it hangs' },
  );
  t.is((await towline(socket, 'configure', 'a', '--fault', 'none')).code, 0);
  t.deepEqual((await ended)[0], 0);
});

test.serial('what is wrong is named, and nothing changes', async (t) => {
  const path = await directory(t);
  const started = await towline('', 'serve', '--json', '--journal', join(path, 'j'), '--fault', 'nth=0,action=hang');
  t.is(started.code, 2);
  t.like(lines(started.out)[0], { error: { code: 'ERR_TOWLINE_INVALID_ARGUMENT', details: { part: 'nth=0' } } });
  t.false(existsSync(join(path, 'j')));

  const { socket } = await serve(t, path, 'a', '--fault', 'action=delay:1ms');
  t.is((await towline(socket, 'provision', '--kind', 'vf', '--name', 'v')).code, 0);
  const before = await rehearsal(socket);
  for (const [args, code, part] of [
    [['a', '--fault', 'action=hang', '--rate', 'save=slow'], 2, 'save=slow'],
    [['a', '--fault', 'action=hang', '--fault', 'action=explode'], 2, 'action=explode'],
    [['a', '--fault', 'action=hang', '--queues', '2'], 2, undefined],
    [['v', '--fault', 'action=hang'], 5, undefined],
    [['b', '--fault', 'action=hang'], 5, undefined],
  ] as const) {
    const wrong = await towline(socket, 'configure', ...args, '--json');
    t.is(wrong.code, code, wrong.out);
    if (part !== undefined) t.like(lines(wrong.out)[0], { error: { details: { part } } }, args.join(' '));
  }
  t.deepEqual(
    (await rehearsal(socket)).faults.map((f) => f.rule),
    before.faults.map((f) => f.rule),
  );
  t.deepEqual((await rehearsal(socket)).rates, {});
});
