import { closeSync } from 'node:fs';
import { native, nativeSync, TowlineError } from '../errors.js';
import type { NativeDestinationSession, NativeSourceSession } from '../native/binding.js';
import { hook } from './hook.js';
import type { SectionContent, Sections, SectionsTogether, SectionTakers } from './options.js';

/** File descriptors that came with the caller's sections. What nobody takes is closed. */
export class SectionFds implements Disposable {
  readonly #fds = new Map<string, Map<string, number>>();

  /** @internal */
  constructor(fds: Iterable<readonly [section: string, fds: readonly { name: string; fd: number }[]]>) {
    for (const [section, list] of fds) this.#fds.set(section, new Map(list.map(({ name, fd }) => [name, fd])));
  }

  /** The names of a section's descriptors that were not taken, in the order in which they were sent. */
  names(section: string): readonly string[] {
    return [...(this.#fds.get(section)?.keys() ?? [])];
  }

  /**
   * Takes one: whoever takes it closes it.
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` where none of that name came, or it was taken.
   */
  take(section: string, name: string): number {
    const fd = this.#fds.get(section)?.get(name);
    if (fd === undefined) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `no descriptor ${name} came with section ${section}, or it was taken`,
      );
    }
    this.#fds.get(section)?.delete(name);
    return fd;
  }

  /** Closes what was not taken. */
  [Symbol.dispose](): void {
    for (const fds of this.#fds.values()) for (const fd of fds.values()) closeSync(fd);
    this.#fds.clear();
  }
}

/** One of {@link NativeSections}. */
interface Layout {
  name: string;
  bytes: number;
  fds: { name: string; fd: number }[];
}

/** The sections that came, by name, with their descriptors. */
export function receivedSections(session: Pick<NativeDestinationSession, 'takeSections'>): {
  sections: Sections;
  fds: SectionFds;
} {
  const { layout, bytes } = nativeSync(() => session.takeSections());
  const taken = JSON.parse(layout) as Layout[];
  let end = 0;
  const own = (count: number): Uint8Array => bytes.subarray(end, (end += count));
  return {
    sections: Object.fromEntries(taken.map((section) => [section.name, own(section.bytes)])),
    fds: new SectionFds(taken.map(({ name, fds }) => [name, fds])),
  };
}

/** Sections on their way: each is copied at once, as the caller may use the same buffer for the next one. */
export class OutgoingSections {
  readonly #layout: Layout[] = [];
  #bytes = new Uint8Array(1 << 14);
  #length = 0;

  add(name: string, content: SectionContent): void {
    const { bytes, fds = {} } = content instanceof Uint8Array ? { bytes: content } : content;
    const end = this.#length + bytes.length;
    if (end > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(end, 2 * this.#bytes.length));
      larger.set(this.#bytes.subarray(0, this.#length));
      this.#bytes = larger;
    }
    this.#bytes.set(bytes, this.#length);
    this.#length = end;
    this.#layout.push({ name, bytes: bytes.length, fds: Object.entries(fds).map(([of, fd]) => ({ name: of, fd })) });
  }

  /** Sends them, where there are any. */
  async send(session: Pick<NativeSourceSession, 'sendSections'>): Promise<void> {
    if (this.#layout.length === 0) return;
    const [layout, bytes] = [JSON.stringify(this.#layout), this.#bytes.subarray(0, this.#length)];
    await native(() => session.sendSections(layout, bytes));
  }
}

const areTogether = (sections: SectionTakers): sections is SectionsTogether => Array.isArray(sections.names);

/** The names of the caller's sections, in the order in which they are sent. */
export function sectionNames(sections: SectionTakers = {}): readonly string[] {
  return areTogether(sections) ? sections.names : Object.keys(sections);
}

/** Takes the caller's sections: one after the other, or all by one call. */
export async function takeSections(sections: SectionTakers | undefined, into: OutgoingSections): Promise<void> {
  if (sections === undefined) return;
  if (!areTogether(sections)) {
    for (const [name, take] of Object.entries(sections)) into.add(name, await hook(`sections.${name}`, take));
    return;
  }
  const taken = await hook('sections.take', () => sections.take());
  for (const name of sections.names) {
    const content = Object.hasOwn(taken, name) ? taken[name] : undefined;
    if (content === undefined)
      throw new TowlineError(
        'ERR_TOWLINE_HOOK',
        `the sections.take hook gave no section ${name}, which is among its names`,
      );
    into.add(name, content);
  }
}
