import { closeSync } from 'node:fs';
import { nativeSync, TowlineError } from '../errors.js';
import type { NativeDestinationSession, NativeSection } from '../native/binding.js';
import { hook } from './hook.js';
import type { SectionContent, Sections } from './options.js';

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

/** The sections that came, by name, with their descriptors. */
export function receivedSections(session: Pick<NativeDestinationSession, 'takeSections'>): {
  sections: Sections;
  fds: SectionFds;
} {
  const taken = nativeSync(() => session.takeSections());
  return {
    sections: Object.fromEntries(taken.map(({ name, bytes }) => [name, bytes])),
    fds: new SectionFds(taken.map(({ name, fds }) => [name, fds])),
  };
}

/** A section as it is sent: its bytes, and its descriptors with their names. */
export function nativeSection(name: string, content: SectionContent): NativeSection {
  if (content instanceof Uint8Array) return { name, bytes: content, fdNames: [], fds: [] };
  const fds = Object.entries(content.fds ?? {});
  return { name, bytes: content.bytes, fdNames: fds.map(([of]) => of), fds: fds.map(([, fd]) => fd) };
}

/** The caller may use the same buffer for the next one. A Buffer's own `slice` is no copy. */
function copied(section: NativeSection): NativeSection {
  return { ...section, bytes: Uint8Array.prototype.slice.call(section.bytes) };
}

/** Takes the caller's sections, one after the other. */
export async function takeSections(
  sections: Readonly<Record<string, () => SectionContent | Promise<SectionContent>>> = {},
): Promise<NativeSection[]> {
  const taken: NativeSection[] = [];
  for (const [name, take] of Object.entries(sections))
    taken.push(copied(nativeSection(name, await hook(`sections.${name}`, take))));
  return taken;
}
