/**
 * Which PCI functions this process has provisioned, by whichever driver: two drivers may be opened on one PF, and a VF that is bound to no
 * driver yet looks free to both.
 */
import type { HostPort } from './port.js';

/** Who has what, by host. */
const registries = new WeakMap<object, Map<string, Claims>>();

/** What one controlling function has. */
export class Claims {
  readonly #registry: Map<string, Claims>;

  constructor(host: HostPort) {
    const identity = host.identity ?? host;
    const known = registries.get(identity) ?? new Map<string, Claims>();
    registries.set(identity, known);
    this.#registry = known;
  }

  /** Whether another controlling function of this process has it. */
  hasOther(address: string): boolean {
    const owner = this.#registry.get(address);
    return owner !== undefined && owner !== this;
  }

  /** Takes it, at once. @returns whether nobody else had it. */
  take(address: string): boolean {
    if (this.hasOther(address)) return false;
    this.#registry.set(address, this);
    return true;
  }

  /** Gives it back, where it is ours. */
  drop(address: string): void {
    if (this.#registry.get(address) === this) this.#registry.delete(address);
  }

  /** Gives everything back. */
  dropAll(): void {
    for (const [address, owner] of this.#registry) if (owner === this) this.#registry.delete(address);
  }
}
