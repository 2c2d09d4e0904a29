/** One crash: a migration under I/O, a holder that loses its power at a named point, recovery, and what is found then. */
import { HolderGone } from './holder-process.js';
import type { Ended, MigrateParams } from './protocol.js';
import { ownerOf, type Facts, type SideFacts } from './rules.js';
import { Stage, type Side, type SideName } from './stage.js';

/** What goes wrong. */
export interface Crash {
  /** Where a holder is killed; the name says whose. */
  killAt?: string;
  /** Where a step fails instead; the name says whose. */
  failAt?: string;
  /** Goes the plain way to a point that is not on it. */
  direct?: true;
  /** A recovery that is broken on purpose, so that the rules are checked too. */
  sabotage?: 'resume-without-asking' | 'lose-write';
}

/** What a migration has to do so that it reaches a point; most are on the way of any. */
const DETOURS: Readonly<Record<string, Pick<MigrateParams, 'objection' | 'failAt'> & { ask?: true }>> = {
  // The verify hook objects: both sides give up.
  'source:aborting': { objection: 'rehearsed' },
  'source:aborted': { objection: 'rehearsed' },
  'destination:aborted': { objection: 'rehearsed' },
  // A source in doubt whose COMMIT never left asks, and is refused.
  'destination:refusal-durable': { failAt: 'source:commit-intent-durable', ask: true },
};

/** Runs one crash to its end. Throws where the point was never reached. */
export async function crash(what: Crash): Promise<Facts> {
  const stage = new Stage();
  try {
    await stage.begin();
    return await new CrashRun(stage, what).run();
  } finally {
    await stage.close();
  }
}

class CrashRun {
  readonly #stage: Stage;
  readonly #what: Crash;

  constructor(stage: Stage, what: Crash) {
    this.#stage = stage;
    this.#what = what;
  }

  async run(): Promise<Facts> {
    const { source, destination } = this.#stage;
    const migrated = await this.#migrateAndCrash();
    const sourceRecord = (await session(source, 'source'))?.state;

    // Nobody answers yet: what the source says now it says by its own records.
    const alone = await source.holder.call('recover', {});
    const before = await source.holder.call('look');
    const inDoubt = alone.some((r) => r.verdict === 'in-doubt');
    await this.#recover(inDoubt);
    const facts: Omit<Facts, 'finding'> = {
      source: await look(source, 'source'),
      destination: await look(destination, 'destination'),
      outcome: migrated?.outcome,
      sourceRecord,
      ranInDoubt: sourceRecord === 'intent' && source.survived && (before.tenantRuns || before.device === 'running'),
      saidInDoubt: { migrate: migrated && migrated.code === 'ERR_TOWLINE_IN_DOUBT', recover: inDoubt },
    };
    return { ...facts, finding: await this.#judgeIo(facts) };
  }

  /** Returns how the migration ended at the source, if it lives to tell. */
  async #migrateAndCrash(): Promise<Ended | undefined> {
    const { source, destination } = this.#stage;
    const { killAt, failAt } = this.#what;
    const victim = killAt?.split(':')[0];
    const { ask, ...detour } = (this.#what.direct ? undefined : DETOURS[killAt ?? '']) ?? {};
    const at = (name: SideName) => ({
      ...(killAt !== undefined && victim === name ? { killAt } : {}),
      ...(failAt?.startsWith(name) ? { failAt } : {}),
    });

    const to = await destination.holder.call('receive', ask ? {} : at('destination'));
    const [migrated] = await Promise.all([
      unlessGone(source.holder.call('migrate', { to, ...at('source'), ...detour })),
      unlessGone(destination.holder.call('received')),
    ]);
    if (ask) {
      const peer = await destination.holder.call('receive', at('destination'));
      await source.holder.call('recover', { peer, timeoutMs: 1000 }).catch(() => undefined);
    }
    if (victim !== undefined) await this.#buryAndRestart(victim === 'source' ? source : destination, killAt ?? '');
    return migrated;
  }

  async #buryAndRestart(side: Side, point: string): Promise<void> {
    // Its peer may tell of a broken link before the system tells us of its end.
    const late = new Promise<void>((resolve) => {
      setTimeout(resolve, 5000).unref();
    });
    await Promise.race([side.holder.gone, late]);
    if (side.holder.alive) throw new Error(`${point} was never reached`);
    const signal = await side.holder.gone;
    if (signal !== 'SIGKILL') throw new Error(`the holder ended by ${signal ?? 'itself'}, not at ${point}`);
    await side.restart();
  }

  async #recover(inDoubt: boolean): Promise<void> {
    const { source, destination } = this.#stage;
    const { sabotage } = this.#what;
    if (sabotage === 'resume-without-asking') {
      await source.holder.call('runAgain');
      await source.holder.call('work', { commands: 50 });
      return;
    }
    const peer = await destination.holder.call('receive', {});
    await source.holder.call('recover', { peer });
    await destination.holder.call('hangUp');
    await destination.holder.call('recover', {});
    const owns = (await session(source, 'source'))?.verdict === 'resume-source';
    if (inDoubt && owns && source.survived) await source.holder.call('runAgain');
  }

  /** Lets the tenant go on where it still is, then asks the witness. */
  async #judgeIo(facts: Omit<Facts, 'finding'>): Promise<Facts['finding']> {
    const { source, destination, witness } = this.#stage;
    const owner = ownerOf(facts);
    const goesOn = owner === 'source' || owner === 'destination' ? this.#stage[owner] : undefined;
    const drained = goesOn !== undefined && goesOn.survived && facts[owner as SideName].tenantRuns;
    if (drained) {
      await goesOn.holder.call('work', { commands: 100 });
      await goesOn.holder.call('drain');
    }
    await Promise.all([source.holder.call('close'), destination.holder.call('close')]);
    if (this.#what.sabotage === 'lose-write') this.#stage.loseWrite();
    return witness.finish(drained ? 'drained' : 'lost');
  }
}

async function session(side: Side, role: SideName) {
  const sessions = await side.holder.call('sessions');
  if (sessions.length > 1) throw new Error(`there are ${sessions.length} sessions in the journal of the ${role}`);
  return sessions.find((s) => s.role === role);
}

async function look(side: Side, role: SideName): Promise<SideFacts> {
  const { device, tenantRuns } = await side.holder.call('look');
  return { survived: side.survived, session: await session(side, role), device, tenantRuns };
}

/** Nothing where the holder ended instead of answering. */
async function unlessGone<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof HolderGone) return undefined;
    throw error;
  }
}
