/** The way from one host to the other: a link that can be slow or cut, or a socket of this host that nobody stands between. */
import { Relay } from '../../shared/relay.js';

/** See the top of this file. */
export interface Way extends Disposable {
  /** Where the source goes to. */
  readonly to: string;
  /** Bytes that went to the destination; 0 where nobody counts. */
  readonly bytes: number;
  /** Breaks the link, once, after so many bytes. */
  cut(afterBytes: number): void;
}

/** The way to where a destination waits. */
export async function wayTo(address: string, bytesPerSecond?: number): Promise<Way> {
  const { protocol, port } = new URL(address);
  if (protocol !== 'tcp:') return { to: address, bytes: 0, cut: () => undefined, [Symbol.dispose]: () => undefined };
  const relay = await Relay.start(Number(port), bytesPerSecond);
  return {
    to: relay.address,
    get bytes() {
      return relay.forwardBytes;
    },
    cut: (afterBytes) => relay.damage({ kind: 'cut', afterBytes }),
    [Symbol.dispose]: () => relay.close(),
  };
}
