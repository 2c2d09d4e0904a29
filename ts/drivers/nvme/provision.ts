/**
 * The steps that bring a controlled NVMe function into being and take it away. Each has its undo; where a step fails, the
 * ones before are undone in reverse order. (NVMe Base 2.1, Virtualization Enhancements and Namespace Attachment.)
 */
import { throwIfAborted, type WaitOptions } from '../../abort.js';
import { TowlineError } from '../../errors.js';
import type { FunctionConfig, FunctionKind, FunctionSpec } from '../../function/types.js';
import { withUndo, type UndoStack } from '../../function/undo.js';
import type { NvmeSecondary } from './admin.js';
import type { NvmeBackend } from './backend.js';

/** What a function got. */
export interface Granted {
  readonly queues: number;
  readonly vectors: number;
  readonly namespaces: readonly number[];
}

const DEFAULT_QUEUES = 1;

async function secondary(backend: NvmeBackend, cntlid: number): Promise<NvmeSecondary | undefined> {
  return (await backend.admin.secondaries()).find((s) => s.cntlid === cntlid);
}

function isFree(s: NvmeSecondary): boolean {
  return !s.online && s.vq === 0 && s.vi === 0;
}

/** Finds, or makes, a function that nobody has. `taken` are the controllers that somebody has. */
export async function claim(
  backend: NvmeBackend,
  spec: FunctionSpec,
  taken: ReadonlySet<number>,
  options: WaitOptions = {},
): Promise<number> {
  const { kind } = spec;
  if (kind === 'siov' && backend.createSiov !== undefined) return createSiov(backend);
  return withUndo(async (steps) => {
    if (kind === 'vf') {
      const { queues = DEFAULT_QUEUES, vectors = queues } = spec;
      const size = async (): Promise<() => Promise<void>> =>
        (await backend.ensureVfs({ vq: queues + 1, vi: vectors }, options)) ?? (async () => undefined);
      await steps.do('size the pool of VFs', size, (undo) => undo());
    }
    return claimExisting(steps, backend, kind, taken);
  });
}

/** Takes one that is there, sets it offline, and gives its controller identifier. */
async function claimExisting(
  steps: UndoStack,
  backend: NvmeBackend,
  kind: FunctionKind,
  taken: ReadonlySet<number>,
): Promise<number> {
  const controllers = (await backend.controllers()).filter(
    (c) => c.kind === kind && !c.controlling && !taken.has(c.cntlid),
  );
  const secondaries = new Map((await backend.admin.secondaries()).map((s) => [s.cntlid, s]));
  for (const { cntlid } of controllers) {
    const s = secondaries.get(cntlid);
    // A controller that is no secondary brings its own resources: there is nothing of it that could be in use but by a claim.
    if ((s !== undefined && !isFree(s)) || (await backend.isTaken?.(cntlid))) continue;
    if (backend.take?.(cntlid) === false) continue;
    await steps.do(
      `take controller ${cntlid}`,
      async () => undefined,
      async () => backend.drop?.(cntlid),
    );
    if (s !== undefined) await backend.admin.offline(cntlid);
    return cntlid;
  }
  throw new TowlineError(
    'ERR_TOWLINE_NO_RESOURCES',
    `${backend.address} has no free ${kind}: ${controllers.length} not taken, none of them offline, empty and bound to no driver`,
  );
}

async function createSiov(backend: NvmeBackend): Promise<number> {
  return withUndo(async (steps) => {
    const cntlid = await steps.do(
      'create the SIOV-like function',
      async () => (await backend.createSiov?.()) ?? 0,
      async (made) => backend.removeSiov?.(made),
    );
    await backend.admin.offline(cntlid);
    return cntlid;
  });
}

async function assign(
  steps: UndoStack,
  backend: NvmeBackend,
  cntlid: number,
  resource: 'vq' | 'vi',
  count: number,
): Promise<number> {
  const got = await steps.do(
    `assign ${count} ${resource}`,
    () => backend.admin.assign(cntlid, resource, count),
    async () => void (await backend.admin.assign(cntlid, resource, 0)),
  );
  // NRM may be above what was asked, by the granularity, or below, by what is left.
  if (got < count) {
    const what = resource === 'vq' ? 'queue pairs (the admin queue included)' : 'interrupt vectors';
    throw new TowlineError(
      'ERR_TOWLINE_NO_RESOURCES',
      `${backend.address} gave controller ${cntlid} ${got} of ${count} ${what}`,
    );
  }
  return got;
}

/** Attaches what is wanted and detaches everything else: attachments survive offline, so an earlier tenant's disk may still be there. */
async function setNamespaces(
  steps: UndoStack,
  backend: NvmeBackend,
  cntlid: number,
  wanted: readonly number[],
): Promise<void> {
  const all = await backend.admin.namespaces();
  for (const nsid of wanted) {
    const namespace = all.find((n) => n.nsid === nsid);
    if (namespace === undefined) {
      throw new TowlineError(
        'ERR_TOWLINE_NOT_FOUND',
        `${backend.address} has no namespace ${nsid}; it has: ${all.map((n) => n.nsid).join(', ') || 'none'}`,
      );
    }
  }
  for (const namespace of all) {
    const attached = namespace.attached.includes(cntlid);
    const { nsid } = namespace;
    const attach = (): Promise<void> => backend.admin.attachNamespace(nsid, cntlid);
    const detach = (): Promise<void> => backend.admin.detachNamespace(nsid, cntlid);
    if (wanted.includes(nsid) && !attached) await steps.do(`attach namespace ${nsid}`, attach, detach);
    else if (!wanted.includes(nsid) && attached) await steps.do(`detach namespace ${nsid}`, detach, attach);
  }
}

async function verifyOnline(backend: NvmeBackend, cntlid: number, queues: number, vectors: number): Promise<void> {
  const now = await secondary(backend, cntlid);
  const info = (await backend.controllers()).find((c) => c.cntlid === cntlid);
  const wrong =
    now === undefined || info === undefined
      ? 'it is gone'
      : !now.online
        ? 'it is offline'
        : info.fatal
          ? 'it reports a fatal status (CSTS.CFS)'
          : now.vq < queues + 1 || now.vi < vectors
            ? `it has ${now.vq} VQ and ${now.vi} VI`
            : undefined;
  if (wrong !== undefined) {
    throw new TowlineError(
      'ERR_TOWLINE_DEVICE',
      `controller ${cntlid} was set online with ${queues + 1} VQ and ${vectors} VI, and ${wrong}`,
    );
  }
}

/** Gives a claimed function its resources and sets it online. */
export async function configure(
  backend: NvmeBackend,
  cntlid: number,
  config: FunctionConfig,
  options: WaitOptions = {},
): Promise<Granted> {
  const before = await secondary(backend, cntlid);
  if (before === undefined) return configureOwn(backend, cntlid, config);
  const queues = config.queues ?? DEFAULT_QUEUES;
  const vectors = config.vectors ?? queues;
  const namespaces = config.namespaces ?? [];
  return withUndo(async (steps) => {
    await steps.do(
      'set it offline',
      () => backend.admin.offline(cntlid),
      // Offline dropped what it had before; it gets that back.
      async () => {
        if (before.vi > 0) await backend.admin.assign(cntlid, 'vi', before.vi);
        if (before.vq > 0) await backend.admin.assign(cntlid, 'vq', before.vq);
        if (before.online) await backend.admin.online(cntlid);
      },
    );
    throwIfAborted(options.signal);
    const gotVectors = await assign(steps, backend, cntlid, 'vi', vectors);
    const gotQueues = await assign(steps, backend, cntlid, 'vq', queues + 1);
    throwIfAborted(options.signal);
    await backend.reset(cntlid);
    await setNamespaces(steps, backend, cntlid, namespaces);
    throwIfAborted(options.signal);
    await steps.do(
      'set it online',
      () => backend.admin.online(cntlid),
      () => backend.admin.offline(cntlid),
    );
    await verifyOnline(backend, cntlid, queues, vectors);
    return { queues: gotQueues - 1, vectors: gotVectors, namespaces: [...namespaces] };
  });
}

/** A function whose resources are its own: they can't be assigned, only be enough or not. */
async function configureOwn(backend: NvmeBackend, cntlid: number, config: FunctionConfig): Promise<Granted> {
  const info = (await backend.controllers()).find((c) => c.cntlid === cntlid);
  if (info === undefined)
    throw new TowlineError('ERR_TOWLINE_GONE', `${backend.address} has no controller ${cntlid} any more`);
  const { ownQueues, ownVectors } = info;
  if ((config.queues ?? 1) > ownQueues || (config.vectors ?? 1) > ownVectors) {
    throw new TowlineError(
      'ERR_TOWLINE_NO_RESOURCES',
      `controller ${cntlid} has ${ownQueues} I/O queue pairs and ${ownVectors} vectors of its own, and can't be given more`,
    );
  }
  return withUndo(async (steps) => {
    await backend.reset(cntlid);
    await setNamespaces(steps, backend, cntlid, config.namespaces ?? []);
    return { queues: ownQueues, vectors: ownVectors, namespaces: [...(config.namespaces ?? [])] };
  });
}

/** Takes everything from a function and gives it back. What can't be undone does not keep the rest from being undone. */
export async function unclaim(backend: NvmeBackend, cntlid: number, kind: FunctionKind): Promise<void> {
  const failures: unknown[] = [];
  const attempt = async (step: () => Promise<unknown>): Promise<void> => {
    try {
      await step();
    } catch (error) {
      failures.push(error);
    }
  };
  await attempt(async () => {
    // A function that is not set offline still loses its tenant's state.
    if ((await secondary(backend, cntlid)) !== undefined) await backend.admin.offline(cntlid);
    else await backend.reset(cntlid);
  });
  await attempt(async () => {
    for (const { nsid, attached } of await backend.admin.namespaces()) {
      if (attached.includes(cntlid)) await backend.admin.detachNamespace(nsid, cntlid);
    }
  });
  if (kind === 'siov') await attempt(async () => backend.removeSiov?.(cntlid));
  if (failures.length > 0) throw failures[0];
}
