import { unwrapFault } from '../errors.js';
import { binding } from './api.js';
import type { NativeBridge } from './binding.js';

/** What a TypeScript implementation answers to one call. */
export interface BridgeAnswer {
  json?: unknown;
  bytes?: Uint8Array;
}

/** Serves calls of native threads by `handler`; every call is answered, a failure as a fault. */
export class JsBridge {
  readonly native: NativeBridge;

  constructor(handler: (method: string, json: unknown, bytes: Uint8Array) => Promise<BridgeAnswer>) {
    this.native = new (binding().Bridge)((id, method, json, bytes) => {
      // The callback runs outside of any caller: nothing may escape from it.
      Promise.resolve()
        .then(() => handler(method, JSON.parse(json), bytes))
        .then(
          (answer) =>
            this.native.reply(id, answer.json === undefined ? null : JSON.stringify(answer.json), answer.bytes ?? null),
          (error: unknown) => this.native.fail(id, JSON.stringify(unwrapFault(error))),
        );
    });
  }

  /** Calls under way fail, later ones too. Idempotent. */
  close(): void {
    this.native.close();
  }
}
