import type { NativeFence } from '../native/binding.js';
import { JsBridge } from '../native/bridge.js';

/** Names one side of one handoff. `epoch` is a decimal string: it is a 64-bit number. */
export interface FenceSession {
  session: string;
  role: 'source' | 'destination';
  functions: string[];
  epoch: string;
}

/**
 * Decides who owns a session's functions: a compare-and-set of an epoch. Every method resolves only when what it says is
 * durable, and rejects when that is not known. The default is a journal on each side ({@link Journal}); an outside one
 * (a lease in a coordination service, say) implements the same interface.
 */
export interface Fence {
  /** The highest epoch that this side has seen for any of `functions`, as a decimal string. */
  highestEpoch(functions: string[]): Promise<string>;
  /** Opens a session. Rejects where `epoch` does not exceed every epoch seen. */
  open(session: FenceSession): Promise<void>;
  /** Source: from here on COMMIT counts as sent. */
  intent(session: FenceSession): Promise<void>;
  /** Destination: takes ownership; source: learned that the destination has it. Rejects a refused epoch. */
  commit(session: FenceSession): Promise<void>;
  /** Destination: this epoch can never commit from now on. */
  refuse(session: FenceSession): Promise<void>;
  /** Source: lets go after a commit. */
  release(session: FenceSession): Promise<void>;
  /** Source: gives up before intent, or after the destination's durable refusal. */
  abort(session: FenceSession): Promise<void>;
}

/** A fence that native sessions can use. */
export interface NativeFenceHolder {
  readonly nativeFence: NativeFence;
  close(): void;
}

/** Lets native sessions use a fence written in TypeScript. */
export function bridgeFence(fence: Fence): NativeFenceHolder {
  const bridge = new JsBridge(async (method, json) => {
    switch (method) {
      case 'highestEpoch':
        return { json: await fence.highestEpoch(json as string[]) };
      case 'open':
      case 'intent':
      case 'commit':
      case 'refuse':
      case 'release':
      case 'abort':
        await fence[method](json as FenceSession);
        return {};
      default:
        throw new Error(`a fence has no method ${method}`);
    }
  });
  return { nativeFence: bridge.native.fence(), close: () => bridge.close() };
}
