/** Back and forth, many times, broken off in every third: nothing may be lost, and each round is judged. */
import { setTimeout as sleep } from 'node:timers/promises';
import { interruptions, type Interruption } from './interruption.js';
import { guestPause, held, lineOf, type DemoLine } from './line.js';
import type { Arrival, GuestReport, Kind, Mode, Move, Scale } from './protocol.js';
import { Stage, type Host } from './stage.js';
import { wayTo } from './way.js';

/** How one round ended. */
export interface Round {
  round: number;
  outcome: Move['outcome'];
  /** What it was broken off by, on purpose. */
  interruption?: Interruption;
  guestPauseMs: number;
  heartbeatGapMs: number;
  /** What was wrong with it; empty where nothing was. */
  wrong: string[];
}

/** In the first pass, which has far more than this to send. */
const CUT_AFTER_BYTES = 1 << 20;

/** Moves one guest `count` times. */
export async function runRounds(
  kind: Kind,
  mode: Mode,
  scale: Scale,
  count: number,
  onRound: (round: Round) => void,
): Promise<DemoLine> {
  using stage = await Stage.open(kind, scale);
  let [here, there]: [Host, Host] = [...stage.hosts];
  await here.call({ do: 'boot' });
  await sleep(scale.runMs);
  let stalePages = 0;
  for (const host of stage.hosts)
    host.onHold = async () => void (stalePages += (await stage.witness.compare()).stalePages);

  const end = { committed: 0, interrupted: 0, wireBytes: 0, move: undefined as Move | undefined, arrival: {} };
  const wrong: string[] = [];
  const kinds = interruptions(mode);
  for (let round = 1; round <= count; round++) {
    const interruption = round % 3 === 0 ? kinds[(round / 3) % kinds.length] : undefined;
    const before = await here.call<GuestReport>({ do: 'guest' });
    stalePages = 0;
    const { move, arrival, bytes } = await oneMove(here, there, mode, scale, interruption, end.committed === 0);
    end.wireBytes += bytes;
    if (interruption !== undefined) end.interrupted++;
    if (move.outcome === 'committed') {
      [here, there] = [there, here];
      end.committed++;
    }
    if (move.outcome === 'committed' || end.move === undefined) Object.assign(end, { move, arrival });
    await sleep(scale.runMs);
    const after = await here.call<GuestReport>({ do: 'guest' });
    const found = complaints(move, interruption, stalePages, before, after);
    wrong.push(...found.map((what) => `round ${round}: ${what}`));
    onRound({
      round,
      outcome: move.outcome,
      guestPauseMs: guestPause(move, arrival),
      heartbeatGapMs: Math.max(0, after.heartbeatGapMs - held(move, arrival)),
      wrong: found,
      ...(interruption === undefined ? {} : { interruption }),
    });
  }
  const { heartbeatGapMs } = await here.call<GuestReport>({ do: 'guest' });
  await here.call({ do: 'drain' });
  const guest = { ...(await here.call<GuestReport>({ do: 'guest' })), heartbeatGapMs };
  await Promise.all(stage.hosts.map((host) => host.call({ do: 'close' })));
  const finding = await stage.witness.finish();
  if (end.move === undefined) throw new Error('no round was asked for');
  const line = lineOf({ kind, mode, scale, sabotage: undefined, guest, finding, ...end, move: end.move });
  const samples = [...wrong, ...(line.samples ?? [])];
  return { ...line, verified: line.verified && wrong.length === 0, ...(samples.length > 0 ? { samples } : {}) };
}

async function oneMove(
  here: Host,
  there: Host,
  mode: Mode,
  scale: Scale,
  interruption: Interruption | undefined,
  freshDestination: boolean,
): Promise<{ move: Move; arrival: Arrival; bytes: number }> {
  const address = await there.call<string>({ do: 'receive', mode, sabotage: undefined, interruption });
  using way = await wayTo(address, scale.linkBytesPerSecond);
  if (interruption === 'cut') way.cut(CUT_AFTER_BYTES);
  const { to } = way;
  const move = await here.call<Move>({ do: 'leave', to, mode, sabotage: undefined, interruption, freshDestination });
  const arrival = await there.call<Arrival>({ do: 'received' });
  return { move, arrival, bytes: way.bytes || move.bytes.wire };
}

/** Everything that a round leaves to be desired. */
function complaints(
  move: Move,
  interruption: Interruption | undefined,
  stalePages: number,
  before: GuestReport,
  after: GuestReport,
): string[] {
  const found: string[] = [];
  const wanted = interruption === undefined ? 'committed' : 'rolled-back';
  if (move.outcome !== wanted) found.push(`it is ${move.outcome}, not ${wanted}: ${move.why ?? 'nobody says why'}`);
  if (stalePages > 0) found.push(`${stalePages} stale pages`);
  if (after.ios <= before.ios) found.push('the guest did no I/O after it');
  if (after.heartbeats <= before.heartbeats) found.push('the guest has no heartbeat after it');
  if (after.failure !== undefined) found.push(after.failure);
  for (const name of ['memoryErrors', 'stateErrors', 'tscErrors', 'lostInterrupts', 'ioErrors'] as const)
    if (after[name] > before[name]) found.push(`${after[name] - before[name]} ${name}`);
  return found;
}
