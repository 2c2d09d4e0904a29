import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { connect, createServer, type AddressInfo } from 'node:net';
import { loadavg } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { Relay } from '../dist-examples/shared/relay.js';
import type { Result } from './result.js';

/** The top folder; this module runs from `dist-benches`. */
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const demo = join(root, 'examples', 'microvm', 'dist', 'microvm', 'demo', 'main.js');

const MIB = 1 << 20;
const RATES = [0, 1, 10, 50];
const MEMORIES_MIB = [256, 1024, 4096];
const LINK_MIB = 256;
const SAMPLES = 5;
/** So many stops at most are remembered. */
const HISTORY = 30;

/** What of a line of the demo is judged; `npm run demo:vm -- --json`. */
interface Line {
  verified: boolean;
  why?: string;
  totalMs: number;
  stopMs: number | null;
  phases: { name: string; ms: number }[];
  downtimeMs: number;
  guestPauseMs: number;
  forecast: { totalMs: number; downtimeMs: { p50: number; p95: number } } | null;
}

/** Until the function runs at the destination: what the source gives back after that is in no forecast. */
function untilItRuns({ totalMs, phases }: Line): number {
  return totalMs - (phases.find(({ name }) => name === 'release')?.ms ?? 0);
}

/** One migration and the raw transfer beside it. */
interface Sample {
  line: Line;
  rawMs: number;
}

/**
 * Migrates the microvm over a link of limited bandwidth: each dirty rate with each size of memory, a transfer of the same memory over the same
 * link by plain TCP after each. Then, over all migrations, how good the forecasts were that were frozen before the first pass.
 */
export async function* vm(options: readonly string[]): AsyncGenerator<Result, void> {
  const { values } = parseArgs({
    args: [...options],
    options: {
      smoke: { type: 'boolean', default: false },
      'guest-mib': { type: 'string', multiple: true },
      rate: { type: 'string', multiple: true },
      link: { type: 'string', default: String(LINK_MIB) },
      samples: { type: 'string' },
    },
  });
  if (!existsSync(demo)) throw new Error('the microvm is not built: npm run demo:vm -- --help builds it');
  const memories = (values['guest-mib'] ?? (values.smoke ? ['128'] : MEMORIES_MIB)).map(Number);
  const rates = (values.rate ?? (values.smoke ? ['1'] : RATES)).map(Number);
  const samples = Number(values.samples ?? (values.smoke ? 1 : SAMPLES));
  const linkMiB = Number(values.link);
  const all: Sample[] = [];
  // What a stop takes besides sending is this VMM's own, so its forecasts are given what it has seen before: of one that is not judged at first.
  const stopMs: number[] = [];
  const learn = ({ stopMs: took }: Line) => void (took !== null && stopMs.push(took));
  learn(await migrate(memories[0] ?? 0, rates[0] ?? 0, linkMiB, []));
  for (const memoryMiB of memories) {
    for (const rate of rates) {
      const cell: Sample[] = [];
      for (let n = 0; n < samples; n++) {
        const line = await migrate(memoryMiB, rate, linkMiB, stopMs.slice(-HISTORY));
        learn(line);
        cell.push({ line, rawMs: await raw(memoryMiB * MIB, linkMiB * MIB) });
      }
      all.push(...cell);
      yield* ofCell(`${memoryMiB} MiB, ${rate} %/s dirty, ${linkMiB} MiB/s`, cell);
    }
  }
  yield* ofForecasts(all);
}

async function migrate(memoryMiB: number, rate: number, linkMiB: number, stopMs: readonly number[]): Promise<Line> {
  const size = ['--memory', String(memoryMiB), '--dirty-rate', String(rate), '--link', String(linkMiB)];
  const known = stopMs.length === 0 ? [] : ['--stop-ms', stopMs.join(',')];
  const child = spawn(process.execPath, [demo, '--json', '--kind', 'vf', ...size, ...known], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  const closed = once(child, 'close');
  let line: Line | undefined;
  for await (const text of createInterface({ input: child.stdout }))
    if (text.startsWith('{')) line = JSON.parse(text) as Line;
  const [code]: unknown[] = await closed;
  if (line === undefined || code !== 0)
    throw new Error(`the microvm ended with ${String(code)}: ${line?.why ?? ''} ${said}`.trim());
  return line;
}

/** Milliseconds of a transfer of so many bytes over a link of that bandwidth, until the last one is there. */
async function raw(bytes: number, bytesPerSecond: number): Promise<number> {
  let left = bytes;
  const server = createServer({ noDelay: true });
  const arrived = new Promise<void>((resolve) => {
    server.on('connection', (socket) => {
      socket.on('data', (chunk) => {
        left -= chunk.length;
        if (left <= 0) resolve();
      });
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  using relay = await Relay.start((server.address() as AddressInfo).port, bytesPerSecond);
  const { port, hostname } = new URL(relay.address);
  const socket = connect({ port: Number(port), host: hostname, noDelay: true });
  await once(socket, 'connect');
  const start = performance.now();
  const chunk = Buffer.alloc(MIB, 0x5a);
  for (let sent = 0; sent < bytes; sent += chunk.length) if (!socket.write(chunk)) await once(socket, 'drain');
  await arrived;
  const ms = performance.now() - start;
  socket.destroy();
  server.close();
  return ms;
}

function* ofCell(name: string, cell: readonly Sample[]): Generator<Result> {
  const common = { bench: 'vm', unit: 'ms' };
  yield {
    ...common,
    ...compare(cell.map(({ line, rawMs }) => [line.totalMs, rawMs])),
    case: `total, ${name}`,
    peer: 'the same memory over the same link by plain TCP',
    goal: 'none: what is written meanwhile has to be sent again',
    met: true,
  };
  const forecasts = cell.flatMap(({ line }) => (line.forecast === null ? [] : [{ line, forecast: line.forecast }]));
  if (forecasts.length === 0) return;
  const total = compare(forecasts.map(({ line, forecast }) => [untilItRuns(line), forecast.totalMs]));
  yield {
    ...common,
    ...total,
    case: `forecast of the total, ${name}`,
    peer: 'the forecast frozen before the first pass',
    goal: 'ratio 0.9 to 1.1',
    met: Math.abs(total.ratio - 1) <= 0.1,
  };
  const pause = compare(forecasts.map(({ line, forecast }) => [line.downtimeMs, forecast.downtimeMs.p95]));
  yield {
    ...common,
    ...pause,
    case: `downtime, ${name}`,
    peer: 'p95 of the forecast frozen before the first pass',
    goal: 'ratio at most 1',
    met: pause.ratio <= 1,
  };
  const guest = compare(cell.map(({ line }) => [line.guestPauseMs, line.downtimeMs]));
  yield {
    ...common,
    ...guest,
    case: `pause of the guest, ${name}`,
    peer: 'downtime of its function',
    goal: 'none: it holds the stop and the start of the vCPUs as well',
    met: true,
  };
}

function* ofForecasts(all: readonly Sample[]): Generator<Result> {
  const lines = all.flatMap(({ line }) => (line.forecast === null ? [] : [{ line, forecast: line.forecast }]));
  if (lines.length === 0) return;
  const errors = lines.map(({ line, forecast }) => Math.abs(forecast.totalMs / untilItRuns(line) - 1) * 100);
  const error = median(errors);
  const base = { bench: 'vm', unit: '%', samples: lines.length, ratioMad: 0, load: loadavg()[0] ?? 0 };
  yield {
    ...base,
    case: 'all runs: error of the forecast of the total, p50',
    ours: error,
    peer: 'what is aimed at',
    theirs: 10,
    ratio: error / 10,
    goal: 'at most 10 %',
    met: error <= 10,
  };
  const within = lines.filter(({ line, forecast }) => line.downtimeMs <= forecast.downtimeMs.p95).length;
  const share = (within / lines.length) * 100;
  yield {
    ...base,
    case: 'all runs: downtime within the p95 of its forecast',
    ours: share,
    peer: 'what is aimed at',
    theirs: 95,
    ratio: share / 95,
    goal: 'at least 95 %, of 60 runs or more',
    met: share >= 95 && lines.length >= 60,
  };
}

/** Medians of both, and of what lies between neighbours. */
function compare(pairs: readonly (readonly [number, number])[]) {
  const ratios = pairs.map(([ours, theirs]) => ours / theirs);
  const ratio = median(ratios);
  return {
    ours: median(pairs.map(([ours]) => ours)),
    theirs: median(pairs.map(([, theirs]) => theirs)),
    ratio,
    samples: pairs.length,
    ratioMad: median(ratios.map((r) => Math.abs(r - ratio))),
    load: loadavg()[0] ?? 0,
  };
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}
