/**
 * Saving and loading device state, as the checks do it.
 */
import { setImmediate } from 'node:timers/promises';
import type { StateChannel } from '../function/channel.js';
import { expect } from './check.js';

/** More than this is taken for a channel that never ends, where the subject says nothing. */
export const DEFAULT_MAX_STATE_BYTES = 64 * 1024 * 1024;
/** So many reads in a row, and the event loop gets its turn: the time limit of a check has to be heard. */
const READS_IN_A_ROW = 256;

/** Reads in `stop-copy` to the end. `maxStateBytes`: more is taken for a channel that never ends. */
export async function readToEnd(
  channel: StateChannel,
  maxBytes = 65_536,
  maxStateBytes = DEFAULT_MAX_STATE_BYTES,
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let total = 0;
  for (let reads = 1; ; reads += 1) {
    if (reads % READS_IN_A_ROW === 0) await setImmediate();
    const result = await channel.read(maxBytes);
    if (result.kind === 'end') return join(chunks, total);
    expect(result.kind === 'bytes', `a read in stop-copy gives ${result.kind}; only bytes and end are allowed there`);
    if (result.kind !== 'bytes') continue;
    expect(result.bytes.length > 0, 'a read gives 0 bytes instead of end');
    expect(result.bytes.length <= maxBytes, `a read of at most ${maxBytes} bytes gives ${result.bytes.length}`);
    // The implementation may use its buffer again.
    chunks.push(result.bytes.slice());
    total += result.bytes.length;
    expect(total <= maxStateBytes, `the state does not end within ${maxStateBytes} bytes`);
  }
}

function join(chunks: readonly Uint8Array[], total: number): Uint8Array {
  const whole = new Uint8Array(total);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
}

/** Stops the function, reads its state, and leaves it in `stop-copy`. */
export async function save(channel: StateChannel, maxBytes?: number, maxStateBytes?: number): Promise<Uint8Array> {
  await channel.setState('stop-copy');
  return readToEnd(channel, maxBytes, maxStateBytes);
}

/** Enters `resuming` and writes `state` in pieces of `pieceBytes`. */
export async function write(channel: StateChannel, state: Uint8Array, pieceBytes = state.length || 1): Promise<void> {
  await channel.setState('resuming');
  for (let at = 0; at < state.length; at += pieceBytes) await channel.write(state.slice(at, at + pieceBytes));
}

/** Writes `state` and runs with it. */
export async function load(channel: StateChannel, state: Uint8Array, pieceBytes?: number): Promise<void> {
  await write(channel, state, pieceBytes);
  await channel.setState('running');
}

/** Brings a channel to `to`, from `running`, with `state` written where that is needed to leave again. */
export async function goTo(
  channel: StateChannel,
  to: Parameters<StateChannel['setState']>[0],
  state: Uint8Array,
): Promise<void> {
  await channel.setState(to);
  if (to === 'resuming') await channel.write(state);
}
