// An embedded NVMe subsystem whose controllers are on vfio-user sockets, in a process of its own so that it can be killed. Started by
// `fork` with a description as its argument; told over the channel which further controllers to serve.
import { EmbeddedDriver, kSubsystem } from '#towline/drivers/embedded.js';
import { NvmeFunction } from '#towline/drivers/nvme.js';
import { provisionFunction } from '#towline/function/index.js';
import type { FunctionKind } from '#towline/function/types.js';
import type { NativeVfioUserServer } from '#towline/native/host-binding.js';

import { policies, type PolicyName } from './policies.js';

/** What a server serves. */
export interface ServerDescription {
  /** Of the subsystem; its UUID and serial number follow from it. */
  name: string;
  /** Files, the first is namespace 1. */
  namespaces: { path: string; megabytes: number }[];
  /** Functions that are provisioned by the host before any socket is there. */
  functions: { kind: FunctionKind; namespaces: number[]; socket: string; policy?: PolicyName }[];
  /**
   * Socket of the controlling PF, whose guest then provisions functions, and how many there are to be had. It has no use for
   * functions of the host: they go offline when the guest enables its controller.
   */
  controlling?: { socket: string; vf: number; siov: number };
}

/** Asks for a controller's socket, for its end where there is no controller, or how it is; the answer is {@link ServerAnswer}. */
export interface ServerRequest {
  id: number;
  cntlid?: number;
  socket: string;
  status?: true;
}

/** The first one, without an `id`, says that everything is served, and by which controllers. */
export interface ServerAnswer {
  id?: number;
  error?: string;
  cntlids?: Record<string, number>;
  status?: SocketStatus;
}

/** What the server of a socket says of its client. */
export interface SocketStatus {
  connected: boolean;
  /** Ranges of guest memory, and how many of them are served by messages. */
  dmaRegions: number;
  messageRegions: number;
}

const description = JSON.parse(process.argv[2] ?? '') as ServerDescription;
const say = (answer: ServerAnswer): void => void process.send?.(answer);

const count = (wanted: FunctionKind): number => description.functions.filter(({ kind }) => kind === wanted).length;
const driver = new EmbeddedDriver([
  {
    name: description.name,
    furtherPfs: count('pf'),
    maxVfs: description.controlling?.vf ?? count('vf'),
    maxSiov: description.controlling?.siov ?? count('siov'),
    namespaces: description.namespaces.map(({ path, megabytes }) => ({ path, sizeBytes: BigInt(megabytes) << 20n })),
  },
]);
const controlling = await driver.open(`embedded:${description.name}`);
const subsystem = controlling[kSubsystem];
const cntlids: Record<string, number> = {};
const servers = new Map<string, NativeVfioUserServer>();
const expose = async (cntlid: number, socket: string, policy?: PolicyName): Promise<void> => {
  cntlids[socket] = cntlid;
  const options = policy === undefined ? {} : { filter: policies[policy].compile().toBytes() };
  servers.set(socket, await subsystem.exposeVfioUser(cntlid, socket, options));
};
for (const { kind, namespaces, socket, policy } of description.functions) {
  const fn = await provisionFunction(controlling, { kind, queues: 2, vectors: 3, namespaces });
  if (!(fn instanceof NvmeFunction)) throw new Error('the embedded driver made no NVMe function');
  await expose(fn.cntlid, socket, policy);
}
if (description.controlling !== undefined) {
  const { socket, vf, siov } = description.controlling;
  if (vf > 0) subsystem.setNumVfs(vf);
  for (let n = 0; n < siov; n++) subsystem.createSiov();
  const pf = controlling.modelControllers().find(({ controlling: is }) => is);
  if (pf === undefined) throw new Error('the subsystem has no controlling function');
  await expose(pf.cntlid, socket);
}

process.on('message', (message) => {
  const { id, cntlid, socket, status } = message as ServerRequest;
  if (status) {
    const text = servers.get(socket)?.status();
    return say(
      text === undefined ? { id, error: `nobody serves ${socket}` } : { id, status: JSON.parse(text) as SocketStatus },
    );
  }
  const done = cntlid === undefined ? servers.get(socket)?.close() : expose(cntlid, socket);
  return void Promise.resolve(done).then(
    () => say({ id }),
    (error: unknown) => say({ id, error: String(error) }),
  );
});
// Whoever forgets the controlling function closes it, and with it its functions go offline.
process.on('disconnect', () => void controlling.close().finally(() => process.exit(0)));
say({ cntlids });
