/**
 * Lines out of a byte stream, each shorter than a cap.
 */
import { TowlineError } from '../errors.js';

/** Cuts bytes into lines. Memory never exceeds the cap and one piece. */
export class LineReader {
  readonly #maxBytes: number;
  #parts: Uint8Array[] = [];
  #held = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /**
   * The lines that became complete, without their end.
   * @throws TowlineError `ERR_TOWLINE_LIMIT` for a line beyond the cap, `ERR_TOWLINE_PROTOCOL` where it is not UTF-8.
   */
  *push(bytes: Uint8Array): Generator<string, void, void> {
    let rest = bytes;
    for (;;) {
      const end = rest.indexOf(0x0a);
      const part = end < 0 ? rest : rest.subarray(0, end);
      if (this.#held + part.length > this.#maxBytes) {
        throw new TowlineError('ERR_TOWLINE_LIMIT', `a line is longer than ${this.#maxBytes} bytes`);
      }
      // The socket may use its buffer again, so what is kept is a copy.
      this.#parts.push(part.slice());
      this.#held += part.length;
      if (end < 0) return;
      const line = Buffer.concat(this.#parts);
      this.#parts = [];
      this.#held = 0;
      rest = rest.subarray(end + 1);
      yield decode(line);
    }
  }
}

function decode(line: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(line);
  } catch (cause) {
    throw new TowlineError('ERR_TOWLINE_PROTOCOL', 'a line is not UTF-8', { cause });
  }
}

/** A message out of a line. */
export function parseMessage(line: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw new TowlineError('ERR_TOWLINE_PROTOCOL', 'a line is no JSON', { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TowlineError('ERR_TOWLINE_PROTOCOL', 'a line is no JSON object');
  }
  return value as Record<string, unknown>;
}
