import { native, nativeSync, TowlineError } from '../errors.js';
import { binding } from '../native/api.js';
import { JsBridge } from '../native/bridge.js';
import type { NativeLink } from '../native/binding.js';

/**
 * A byte stream of the caller's own: duplex, ordered, reliable. towline sends and receives on it and nothing else does,
 * until it is closed.
 */
export interface Link {
  /** Sends all of `data`; it is a copy. */
  send(data: Uint8Array): Promise<void>;
  /** At least one byte and at most `maxBytes`; empty at the end of the stream. */
  receive(maxBytes: number): Promise<Uint8Array>;
  /** Nothing more is sent or received. */
  close(): void | Promise<void>;
}

/** A link of a session, and how to give up what waits on it in JavaScript. */
export interface OpenLink {
  readonly native: NativeLink;
  /** What is under way is given up; what is sent from here on is a farewell. */
  cancel(): void;
  /** Nothing is sent or received any more. Idempotent. */
  end(): void;
}

/** A socket of the engine's own, which gives up by itself. */
export function socketLink(socket: NativeLink): OpenLink {
  return { native: socket, cancel: () => undefined, end: () => undefined };
}

/** Connects to `tcp://host:port` or `unix:///path`. */
export async function connectLink(to: string, timeoutMs: number): Promise<OpenLink> {
  return socketLink(await native(() => binding().connect(to, timeoutMs)));
}

/** The caller's stream for native sessions. */
export function wrapLink(link: Link): NativeLink {
  const bridge = new JsBridge(async (method, json, bytes) => {
    switch (method) {
      case 'send':
        await link.send(bytes);
        return {};
      case 'receive':
        return { bytes: await link.receive(json as number) };
      case 'close':
        await link.close();
        return {};
      default:
        throw new TowlineError('ERR_TOWLINE_INTERNAL', `a link has no method ${method}`);
    }
  });
  return nativeSync(() => bridge.native.link());
}
