/**
 * The rules of the handoff, judged by facts alone (docs/guides/crash-safety.md). Pure: what broke is not known here.
 */
import type { JournalSession } from '#towline/index.js';
import type { Finding } from '../../dist-examples/shared/witness-process.js';

/** What was found at one side after everybody recovered. */
export interface SideFacts {
  /** Whether the holder is the one that began. */
  survived: boolean;
  /** The session as its journal has it; nothing where it was never opened here. */
  session: JournalSession | undefined;
  /** Whether the tenant's CPU runs here. */
  tenantRuns: boolean;
  /** Of the device, by its own word. */
  device: string;
}

/** What was found in one case. */
export interface Facts {
  source: SideFacts;
  destination: SideFacts;
  /** How the migration ended at the source, where its holder lived to tell. */
  outcome: string | undefined;
  /** The source's last record before anybody recovered. */
  sourceRecord: string | undefined;
  /** Whether the source ran the function or its tenant while its last record was the intent. */
  ranInDoubt: boolean;
  /** Whether the source said that it is in doubt: `migrate` where its holder survived, `recover` in any case. */
  saidInDoubt: { migrate: boolean | undefined; recover: boolean };
  finding: Finding;
}

export type Owner = 'source' | 'destination' | 'nobody-knows';

/** By the two verdicts; nothing where they contradict each other. */
export function ownerOf({ source, destination }: Pick<Facts, 'source' | 'destination'>): Owner | undefined {
  const there = destination.session?.verdict ?? 'refuse';
  // Without a record not one byte of COMMIT has left.
  switch (source.session?.verdict ?? 'resume-source') {
    case 'resume-source':
      return there === 'refuse' ? 'source' : undefined;
    case 'released':
      return there === 'run-destination' ? 'destination' : undefined;
    case 'in-doubt':
      return 'nobody-knows';
    default:
      return undefined;
  }
}

/** Every rule that was broken, in words. */
export function judge(facts: Facts): string[] {
  const { source, destination, sourceRecord, ranInDoubt, saidInDoubt, finding } = facts;
  const broken: string[] = [];
  const rule = (kept: boolean, words: string): void => {
    if (!kept) broken.push(words);
  };
  const owner = ownerOf(facts);
  rule(owner !== undefined, `contradicting verdicts: ${source.session?.verdict} and ${destination.session?.verdict}`);
  rule(!source.tenantRuns || owner === 'source', 'the source runs what it does not own');
  rule(!destination.tenantRuns || owner === 'destination', 'the destination runs what it does not own');
  for (const [name, side] of [
    ['source', source],
    ['destination', destination],
  ] as const) {
    if (owner === name && side.survived) {
      rule(side.tenantRuns && side.device === 'running', `the ${name} owns the function, has it, and does not run it`);
    }
    rule(side.survived || !side.tenantRuns, `the ${name} runs what went with its holder`);
  }
  rule(
    !source.survived || owner === 'source' || source.device !== 'running',
    'the function goes on at a source that does not own it',
  );

  rule(!ranInDoubt, 'the source ran the function while it was in doubt');
  const inDoubt = sourceRecord === 'intent';
  rule(
    saidInDoubt.recover === inDoubt,
    `recover said ${saidInDoubt.recover ? '' : 'not '}in doubt, the source's last record is ${sourceRecord}`,
  );
  rule(
    saidInDoubt.migrate === undefined || saidInDoubt.migrate === inDoubt,
    `migrate said ${saidInDoubt.migrate ? '' : 'not '}in doubt, the source's last record is ${sourceRecord}`,
  );

  const { io, owners, stalePages } = finding;
  rule(owners === 1, `${owners} owners at once`);
  rule(io.completed > 0, 'the tenant did nothing');
  for (const what of ['lost', 'duplicated', 'corrupted'] as const)
    rule(io[what] === 0, `${io[what]} ${what}: ${finding.samples.join('; ')}`);
  rule(stalePages === 0, `${stalePages} stale pages`);
  return broken;
}
