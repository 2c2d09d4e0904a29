/**
 * The methods of a serving process, each with the check of its parameters.
 */
import { throwIfAborted } from '../abort.js';
import { conformFunction } from '../conformance/function.js';
import { TowlineError } from '../errors.js';
import { exposureNames, functionKinds, type FunctionConfig, type FunctionSpec } from '../function/types.js';
import { checkpoint } from '../migration/checkpoint.js';
import { checkpointModes } from '../migration/checkpoint-options.js';
import { receive } from '../migration/destination.js';
import type { Migration } from '../migration/migration.js';
import type { MigrationPolicy } from '../migration/policy.js';
import type { MigrationReport } from '../migration/report.js';
import { releaseEach } from '../migration/release.js';
import { restore } from '../migration/restore.js';
import { migrate } from '../migration/source.js';
import { version } from '../version.js';
import type { HeldFunction, Host } from './host.js';
import { Params } from './params.js';
import { recoverSessions } from './recover.js';
import { MAX_RULES } from './rehearsal.js';
import type { MethodName, Methods } from './protocol.js';

/** What a running method has besides its parameters. */
export interface MethodContext {
  readonly signal: AbortSignal;
  readonly emit: (event: unknown) => void;
}

type Method<M extends MethodName> = (
  host: Host,
  params: Params,
  context: MethodContext,
) => Promise<Methods[M]['result']>;

const DAY_MS = 86_400_000;

/** What is in doubt is left alone by all but `recover`. */
const REFUSED = { inDoubt: 'refused' } as const;
const OWN_MEMORY = { ...REFUSED, memory: 'ours' } as const;

function readConfig(params: Params): FunctionConfig {
  return {
    queues: params.optionalCount('queues', 1, 65_535),
    vectors: params.optionalCount('vectors', 1, 2048),
    namespaces: params.optionalCounts('namespaces', 1, 0xffff_fffd),
    hwAddress: params.optionalText('hwAddress', 17),
  };
}

function readSpec(params: Params): FunctionSpec {
  return {
    ...readConfig(params),
    kind: params.choice('kind', functionKinds),
    uuid: params.optionalText('uuid', 36),
    name: params.optionalText('name', 64),
    migration: params.optionalFlag('migration'),
    expose: params.optionalChoice('expose', exposureNames),
    type: params.optionalText('type', 128),
  };
}

function readPolicy(params: Params): MigrationPolicy {
  const policy: MigrationPolicy = {};
  const set = <K extends keyof MigrationPolicy>(key: K, value: MigrationPolicy[K] | undefined): void => {
    if (value !== undefined) policy[key] = value;
  };
  set('maxDowntimeMs', params.optionalCount('maxDowntimeMs', 1, DAY_MS));
  set('maxRounds', params.optionalCount('maxRounds', 1, 10_000));
  set('maxTotalMs', params.optionalCount('maxTotalMs', 1, DAY_MS));
  set('bandwidthBytesPerSecond', params.optionalCount('bandwidthBytesPerSecond', 1, Number.MAX_SAFE_INTEGER));
  // The serving process has no vCPUs to throttle: what can be limited are the functions.
  const converge = params.nested('converge');
  const listed = converge.optionalTexts('means', 0, 1, 32);
  if (listed !== undefined) {
    const bad = listed.find((m) => m !== 'device-limit');
    if (bad !== undefined) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `migrate: converge.means has ${bad}; here there is device-limit`,
      );
    }
    const least = converge.nested('deviceLimit').optionalCount('leastBytesPerSecond', 1, Number.MAX_SAFE_INTEGER);
    const limit = least === undefined ? {} : { deviceLimit: { leastBytesPerSecond: least } };
    policy.converge = { means: listed.length === 0 ? [] : ['device-limit'], ...limit };
  }
  set('onNoConvergence', params.optionalChoice('onNoConvergence', ['give-up', 'stop'] as const));
  return policy;
}

async function findAll(host: Host, params: Params): Promise<HeldFunction[]> {
  const found: HeldFunction[] = [];
  for (const word of params.texts('functions', 1, 64)) found.push(await host.find(word));
  if (new Set(found.map(({ fn }) => fn)).size !== found.length)
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', 'a function is named twice');
  return found;
}

/** The one memory of all of them: a session moves the functions of one guest. */
function sharedMemory(functions: readonly HeldFunction[]): { memory?: NonNullable<HeldFunction['memory']> } {
  const memory = functions[0]?.memory;
  if (functions.some((f) => f.memory !== memory)) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      'these functions have different guest memories: migrate each by itself',
    );
  }
  return memory === undefined ? {} : { memory };
}

/** `exactOptionalPropertyTypes`: what is left out must be absent, not `undefined`. */
function given<T extends object>(values: T): { [K in keyof T]?: NonNullable<T[K]> } {
  return Object.fromEntries(Object.entries(values).filter(([, v]) => v !== undefined)) as {
    [K in keyof T]?: NonNullable<T[K]>;
  };
}

async function follow(migration: Migration, { emit }: MethodContext): Promise<MigrationReport> {
  for await (const event of migration) emit(event);
  return migration.result;
}

/** Once they are owned elsewhere, what is left of them here goes back to the controlling function, and their memory with it. */
async function releaseMoved(
  host: Host,
  functions: readonly HeldFunction[],
  report: MigrationReport,
): Promise<MigrationReport> {
  if (report.outcome !== 'committed') return report;
  const parts = functions.map((held) => ({ uuid: held.fn.uuid, name: held.fn.name, held }));
  const releaseFailures = await releaseEach(parts, ({ held }) => host.release(held));
  return releaseFailures.length === 0 ? report : { ...report, releaseFailures };
}

const methods: { readonly [M in MethodName]: Method<M> } = {
  version: async () => ({ version, pid: process.pid }),

  list: async (host) => {
    const controlling = [];
    for (const c of host.controlling) controlling.push(await host.controllingInfo(c));
    return { controlling, functions: (await host.functions()).map((held) => host.info(held)) };
  },

  provision: async (host, params, { signal }) =>
    host.info(
      await host.provision(params.optionalText('controlling', 256), readSpec(params.nested('spec')), {
        signal,
        guest: params.optionalText('guest', 64),
        socketPath: params.optionalText('socketPath'),
      }),
    ),

  configure: async (host, params, { signal }) => {
    const held = await host.find(params.text('function', 256));
    const config = readConfig(params.nested('config'));
    const migration = params.optionalFlag('migration');
    return host.exclusively([held], REFUSED, async () => {
      if (Object.values(config).some((v) => v !== undefined)) {
        // What is not named stays as it is.
        const { queues, vectors, namespaces, hwAddress } = held.fn.spec;
        const whole = { queues, vectors, namespaces, hwAddress, ...given(config) };
        await held.controlling.configure(held.fn, whole, { signal });
      }
      if (migration === true) await held.controlling.enableMigration(held.fn, { signal });
      if (migration === false) {
        throw new TowlineError(
          'ERR_TOWLINE_UNSUPPORTED',
          'migration can not be disabled again: release the function and provision it without',
        );
      }
      return host.info(held);
    });
  },

  rehearse: async (host, params) => {
    // No command goes to the device here: what hangs by a rule has to be freed by taking the rule away.
    const controlling = host.findControlling(params.optionalText('controlling', 256));
    const faults = params.optionalTexts('faults', 0, MAX_RULES, 1024);
    return {
      address: controlling.address,
      rehearsal: host.rehearse(controlling, { faults, rates: params.optionalText('rates', 1024) }),
    };
  },

  expose: async (host, params, { signal }) => {
    const held = await host.find(params.text('function', 256));
    const exposure = params.choice('exposure', exposureNames);
    return host.exclusively([held], REFUSED, async () => {
      await host.expose(held, exposure, { signal, socketPath: params.optionalText('socketPath') });
      return host.info(held);
    });
  },

  release: async (host, params) => {
    const held = await host.find(params.text('function', 256));
    return host.exclusively([held], REFUSED, async () => {
      const info = host.info(held);
      await host.release(held);
      return { ...info, state: held.fn.state, exposure: held.fn.exposure };
    });
  },

  explain: async (host, params, { signal }) => {
    const held = await host.find(params.text('function', 256));
    const copy = params.optionalFlag('copy');
    return { function: host.info(held), reasons: await host.explain(held, { signal, copy }) };
  },

  migrate: async (host, params, context) => {
    const found = await findAll(host, params);
    const options = {
      to: params.text('to'),
      fence: host.journal,
      // The host does it: the memory has to be detached before.
      release: false,
      signal: context.signal,
      policy: readPolicy(params.nested('policy')),
      ...sharedMemory(found),
      ...given({
        dryRun: params.optionalFlag('dryRun'),
        record: params.optionalText('record'),
        linkTimeoutMs: params.optionalCount('linkTimeoutMs', 1, DAY_MS),
      }),
    };
    return host.exclusively(found, OWN_MEMORY, async () => {
      const functions = found.map(({ fn }) => fn);
      return releaseMoved(host, found, await follow(migrate(functions, options), context));
    });
  },

  receive: async (host, params, context) => {
    const found = await findAll(host, params);
    const options = {
      from: params.text('from'),
      fence: host.journal,
      signal: context.signal,
      onListening: (address: string) => context.emit({ type: 'listening', address }),
      ...sharedMemory(found),
      ...given({
        allowRemotePlaintext: params.optionalFlag('allowRemotePlaintext'),
        acceptTimeoutMs: params.optionalCount('acceptTimeoutMs', 1, DAY_MS),
        linkTimeoutMs: params.optionalCount('linkTimeoutMs', 1, DAY_MS),
      }),
    };
    return host.exclusively(found, OWN_MEMORY, () =>
      follow(
        receive(
          found.map(({ fn }) => fn),
          options,
        ),
        context,
      ),
    );
  },

  checkpoint: async (host, params, context) => {
    const found = await findAll(host, params);
    const options = {
      path: params.text('path'),
      mode: params.choice('mode', checkpointModes),
      fence: host.journal,
      release: false,
      signal: context.signal,
      policy: readPolicy(params.nested('policy')),
      ...sharedMemory(found),
      ...given({ overwrite: params.optionalFlag('overwrite'), live: params.optionalFlag('live') }),
    };
    return host.exclusively(found, OWN_MEMORY, async () => {
      const functions = found.map(({ fn }) => fn);
      return releaseMoved(host, found, await follow(checkpoint(functions, options), context));
    });
  },

  restore: async (host, params, context) => {
    const found = await findAll(host, params);
    const functions = found.map(({ fn }) => fn);
    const options = {
      path: params.text('path'),
      fence: host.journal,
      signal: context.signal,
      ...sharedMemory(found),
    };
    return host.exclusively(found, OWN_MEMORY, () => follow(restore(functions, options), context));
  },

  sessions: async (host) => host.journal.sessions(),

  recover: (host, params, context) => recoverSessions(host, params, context),

  conformance: async (host, params, { emit, signal }) => {
    const held = await host.find(params.text('function', 256));
    const destructive = params.optionalFlag('destructive') ?? false;
    return host.exclusively([held], REFUSED, async () => {
      let checks = 0;
      let failed = 0;
      const options = { destructive, memory: held.memory?.ranges() };
      for await (const result of conformFunction(held.controlling, held.fn, options)) {
        throwIfAborted(signal);
        checks += 1;
        if (result.outcome === 'failed') failed += 1;
        emit(result);
      }
      return { checks, failed };
    });
  },

  // The server closes once the answer is on its way.
  shutdown: async () => null,
};

/** Calls a method by name. */
export function callMethod(host: Host, method: string, params: unknown, context: MethodContext): Promise<unknown> {
  if (!Object.hasOwn(methods, method)) {
    return Promise.reject(new TowlineError('ERR_TOWLINE_NOT_FOUND', `there is no method ${method.slice(0, 64)}`));
  }
  const call = methods[method as MethodName] as Method<MethodName>;
  // A throw while reading the parameters rejects, too.
  return Promise.resolve().then(() => call(host, new Params(params, method), context));
}
