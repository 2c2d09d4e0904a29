import { nativeSync, TowlineError } from '../errors.js';
import type { NativeLink } from '../native/binding.js';
import { wrapLink, type OpenLink, type Link } from './link.js';

/** The sending end of a one-way byte stream of the caller's: ordered and reliable. */
export interface SendHalf {
  /** Sends all of `data`; it is a copy. */
  send(data: Uint8Array): Promise<void>;
  /** Nothing more comes. */
  close?(): void | Promise<void>;
}

/** The receiving end of a one-way byte stream of the caller's. */
export interface ReceiveHalf {
  /** At least one byte and at most `maxBytes`; empty at the end of the stream. */
  receive(maxBytes: number): Promise<Uint8Array>;
  /** Nothing more is read. */
  close?(): void | Promise<void>;
}

/** How long a farewell may take that the caller's stream does not accept, in milliseconds. */
const FAREWELL_MS = 1000;

/**
 * The caller's stream as a session uses it. Native code waits for the caller's promises without end; this is where they are
 * given up.
 */
export class CallerStream implements OpenLink {
  readonly duplex: boolean;
  readonly native: NativeLink;
  readonly #giveUp = new Set<(error: Error) => void>();
  #cancelled = false;
  #ended = false;

  constructor(stream: Link | SendHalf | ReceiveHalf) {
    const send = 'send' in stream ? (data: Uint8Array) => stream.send(data) : undefined;
    const receive = 'receive' in stream ? (maxBytes: number) => stream.receive(maxBytes) : undefined;
    this.duplex = send !== undefined && receive !== undefined;
    const link: Link = {
      send: (data) => {
        if (send === undefined) throw oneWay('sent on');
        return this.#unlessGivenUp(() => send(data), this.#cancelled ? FAREWELL_MS : undefined);
      },
      receive: (maxBytes) => {
        if (receive === undefined) throw oneWay('received from');
        return this.#unlessGivenUp(() => receive(maxBytes));
      },
      close: () => stream.close?.(),
    };
    this.native = nativeSync(() => wrapLink(link));
  }

  /** Gives up what is under way. What is sent from here on is a farewell. */
  cancel(): void {
    this.#cancelled = true;
    this.#reject();
  }

  /** Nothing is sent or received any more. */
  end(): void {
    this.#ended = true;
    this.#reject();
  }

  #reject(): void {
    for (const giveUp of this.#giveUp) giveUp(ended());
    this.#giveUp.clear();
  }

  async #unlessGivenUp<T>(work: () => Promise<T>, limitMs?: number): Promise<T> {
    if (this.#ended) throw ended();
    let giveUp: ((error: Error) => void) | undefined;
    let timer: NodeJS.Timeout | undefined;
    const givenUp = new Promise<never>((_, reject) => {
      giveUp = reject;
      this.#giveUp.add(reject);
      if (limitMs !== undefined) timer = setTimeout(() => reject(ended()), limitMs);
    });
    try {
      return await Promise.race([work(), givenUp]);
    } finally {
      clearTimeout(timer);
      if (giveUp) this.#giveUp.delete(giveUp);
    }
  }
}

const ended = () => new TowlineError('ERR_TOWLINE_LINK_CLOSED', "the session has let go of the caller's stream");

const oneWay = (what: string) =>
  new TowlineError('ERR_TOWLINE_INTERNAL', `a one-way stream is ${what} at its other end only`);
