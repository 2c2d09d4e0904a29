/**
 * From the interfaces to native handles: an implementation in native code hands over its own, so that no byte passes
 * through JavaScript; one in plain TypeScript is called back by native threads.
 */
import { TowlineError } from '../errors.js';
import type { NativeDirtySource, NativeStateChannel } from '../native/binding.js';
import { JsBridge } from '../native/bridge.js';
import { kNative, type DirtySource, type StateChannel } from './channel.js';
import { NativeChannel, NativeSource } from './native-channel.js';
import { deviceStates, flagBits, stateFromNumber, stateNumber } from './state.js';

/** A native handle for a session, and how to let go of what was made for it. The implementation itself stays open. */
export interface NativeHandle<T> {
  readonly native: T;
  /** Idempotent. */
  close(): void;
}

/** The most that native code may ask a channel for in one read, in bytes. */
const MAX_READ_BYTES = 64 * 1024 * 1024;

function asCount(json: unknown, most: number, what: string): number {
  if (typeof json !== 'number' || !Number.isSafeInteger(json) || json < 0 || json > most) {
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${what} is ${String(json)}; it has to be 0 to ${most}`);
  }
  return json;
}

function unknownMethod(what: string, method: string): TowlineError {
  return new TowlineError('ERR_TOWLINE_INTERNAL', `a ${what} has no method ${method}`);
}

/** A state channel as native sessions take it. */
export function nativeStateChannel(channel: StateChannel): NativeHandle<NativeStateChannel> {
  const own = channel[kNative];
  if (own !== undefined) return { native: own, close: () => undefined };
  const bridge = new JsBridge(async (method, json, bytes) => {
    switch (method) {
      case 'state':
        return { json: stateNumber(await channel.state()) };
      case 'setState':
        await channel.setState(stateFromNumber(asCount(json, deviceStates.length - 1, 'a migration state')));
        return {};
      case 'read': {
        const maxBytes = asCount(json, MAX_READ_BYTES, 'the length of a read');
        const result = await channel.read(maxBytes);
        if (result.kind !== 'bytes') return { json: result.kind };
        if (result.bytes.length === 0 || result.bytes.length > maxBytes) {
          throw new TowlineError(
            'ERR_TOWLINE_DEVICE',
            `the state channel gave ${result.bytes.length} bytes when 1 to ${maxBytes} were asked for`,
          );
        }
        return { json: 'bytes', bytes: result.bytes };
      }
      case 'write':
        await channel.write(bytes);
        return {};
      case 'pending': {
        const pending = await channel.pending();
        return {
          json: {
            initialBytes: pending.initialBytes.toString(),
            dirtyBytes: pending.dirtyBytes.toString(),
            stopCopyBytes: pending.stopCopyBytes?.toString() ?? null,
          },
        };
      }
      case 'reset':
        await channel.reset();
        return {};
      default:
        throw unknownMethod('state channel', method);
    }
  });
  return { native: bridge.native.stateChannel(flagBits(channel.flags)), close: () => bridge.close() };
}

interface StartRequest {
  ranges: [string, string][];
  pageSizeBytes: number;
}

/** A dirty source as native sessions take it. */
export function nativeDirtySource(source: DirtySource): NativeHandle<NativeDirtySource> {
  const own = source[kNative];
  if (own !== undefined) return { native: own, close: () => undefined };
  const bridge = new JsBridge(async (method, json) => {
    switch (method) {
      case 'start': {
        const { ranges, pageSizeBytes } = json as StartRequest;
        const wanted = ranges.map(([gpa, len]) => ({ gpa: BigInt(gpa), len: BigInt(len) }));
        return { json: await source.start(wanted, pageSizeBytes) };
      }
      case 'harvest': {
        const ranges = await source.harvest();
        return { json: { ranges: ranges.map((r) => [r.gpa.toString(), r.len.toString()]) } };
      }
      case 'stop':
        await source.stop();
        return {};
      default:
        throw unknownMethod('dirty source', method);
    }
  });
  return { native: bridge.native.dirtySource(), close: () => bridge.close() };
}

/** A native state channel as the interface shows it. */
export function wrapStateChannel(handle: NativeStateChannel): StateChannel {
  return new NativeChannel(handle);
}

/** A native dirty source as the interface shows it. */
export function wrapDirtySource(handle: NativeDirtySource, name?: string): DirtySource {
  return new NativeSource(handle, name);
}
