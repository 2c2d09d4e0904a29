// Whether two kernels and two journals say the same of one function. Pure: what was found is judged, not how it came about.
import type { JournalSession } from '#towline/index.js';
import { ownerOf, type Owner } from '../../crash/rules.js';

/** What was found at one side. */
export interface Found {
  /** As its journal has it; nothing where it was never opened there. */
  session: JournalSession | undefined;
  /** By the kernel; `absent`: there is no such device. */
  state: string;
  /** Read from the device; nothing where there is none. */
  registers: readonly number[] | undefined;
}

/** What was found at both. */
export interface FoundBoth {
  source: Found;
  destination: Found;
  /** The registers as the guest had written them. */
  guest: readonly number[];
  /** Whether the destination was reset after it had loaded them: mtty keeps its registers, and runs. */
  destinationReset: boolean;
}

/** States in which a device executes. */
const EXECUTES: ReadonlySet<string> = new Set(['running', 'running-p2p', 'pre-copy', 'pre-copy-p2p']);

const same = (a: readonly number[] | undefined, b: readonly number[]): boolean => a?.join() === b.join();

/** Who owns the function by the journals. */
export const owner = ({ source, destination }: FoundBoth): Owner | undefined =>
  ownerOf({
    source: { ...source, survived: true, tenantRuns: false, device: source.state },
    destination: { ...destination, survived: true, tenantRuns: false, device: destination.state },
  });

/** Every rule that is broken, in words. `settled`: after everybody has recovered. */
export function disagreements(found: FoundBoth, settled: boolean): string[] {
  const { source, destination, guest, destinationReset } = found;
  const broken: string[] = [];
  const rule = (kept: boolean, words: string): void => {
    if (!kept) broken.push(words);
  };
  const who = owner(found);
  const executes = {
    source: EXECUTES.has(source.state),
    destination: EXECUTES.has(destination.state) && same(destination.registers, guest) && !destinationReset,
  };
  rule(
    who !== undefined,
    `the journals contradict each other: ${source.session?.verdict} and ${destination.session?.verdict}`,
  );
  rule(!(executes.source && executes.destination), 'the function executes in both kernels');
  rule(
    !executes.source || (source.session?.verdict ?? 'resume-source') === 'resume-source',
    `the function executes at the source, whose journal says ${source.session?.verdict}`,
  );
  rule(
    !executes.destination || destination.session?.verdict === 'run-destination',
    `the function executes at the destination, whose journal says ${destination.session?.verdict}`,
  );
  if (!settled || who === undefined) return broken;
  if (who === 'nobody-knows') {
    rule(source.state === 'stop-copy' || source.state === 'stop', `in doubt, and the source is in ${source.state}`);
    return broken;
  }
  const owning = found[who];
  rule(owning.state === 'running', `the ${who} owns the function, and its kernel has it in ${owning.state}`);
  rule(
    same(owning.registers, guest),
    `the ${who} owns the function with the registers ${owning.registers?.join() ?? 'of nothing'}, not ${guest.join()}`,
  );
  if (who === 'destination')
    rule(source.state === 'absent', `what moved away is still at the source, in ${source.state}`);
  else {
    const { state } = destination;
    rule(state === 'absent' || state === 'running', `the destination keeps what it was refused, in ${state}`);
  }
  return broken;
}
