import { buildCommand } from '@stricli/core';
import { join } from 'node:path';
import { parseRates } from '../rehearsal/rule.js';
import { controllingName, openControlling, parseControlling, type ControllingWord } from '../serve/drivers.js';
import { Host } from '../serve/host.js';
import { defaultSocketPath, defaultStateDirectory } from '../serve/paths.js';
import { parseRules } from '../serve/rehearsal.js';
import { startServer, type RunningServer } from '../serve/server.js';
import { clientFlags, runCommand, type ClientFlags, type CliContext } from './context.js';
import { faultTexts, rehearsalFlags } from './rehearsal.js';
import { parseCount, parseNamespace, parseSize, parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly controlling?: readonly ControllingWord[] | undefined;
  readonly force?: boolean | undefined;
  readonly vfioBy?: 'auto' | 'group' | 'cdev' | undefined;
  readonly vfToken?: string | undefined;
  readonly embedded?: string | undefined;
  readonly namespace?: readonly ReturnType<typeof parseNamespace>[] | undefined;
  readonly pfs?: number | undefined;
  readonly vfs?: number | undefined;
  readonly siov?: number | undefined;
  readonly memory?: bigint | undefined;
  readonly journal?: string | undefined;
  readonly fault?: readonly string[] | undefined;
  readonly rate?: string | undefined;
}

/** `towline serve`. JSON: `{"serving":{"socket":…,"pid":n,"controlling":[address]}}` once it answers. */
export const serve = buildCommand({
  docs: {
    brief: 'Hold functions in this process and answer the other commands on a UNIX socket',
    fullDescription:
      'Without --controlling an embedded subsystem is started, which needs neither hardware nor rights; its functions end with this process, as in a power failure. With it, controlling functions of this host are opened: towline list shows what there is. The socket has mode 0600 in a directory that only this user or root can write, so only they can connect; Node can not ask for the credentials of a peer. Ctrl-C ends it.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      controlling: {
        kind: 'parsed',
        parse: parseControlling,
        brief:
          'Controlling function of this host: nvme:0000:01:00.0, sriov:0000:01:00.0, mdev:mtty, devlink:pci/0000:01:00.0, or embedded:NAME; may be given several times',
        optional: true,
        variadic: true,
        placeholder: 'driver:address',
      },
      force: {
        kind: 'boolean',
        brief: 'Where the pool of VFs has another size than --vfs, destroy the VFs that are there, whoever uses them',
        optional: true,
        withNegated: false,
      },
      vfioBy: {
        kind: 'enum',
        values: ['auto', 'group', 'cdev'],
        brief: 'How VFIO devices are opened (default auto: cdev where there is one)',
        optional: true,
      },
      vfToken: {
        kind: 'parsed',
        parse: parseText,
        brief: 'UUID of the VF token, where the PF is bound to vfio-pci',
        optional: true,
        placeholder: 'uuid',
      },
      embedded: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Name of the embedded subsystem to start (default: default, where there is no --controlling)',
        optional: true,
        placeholder: 'name',
      },
      namespace: {
        kind: 'parsed',
        parse: parseNamespace,
        brief:
          'Namespace in a file, created where it is missing: PATH:SIZE or PATH:SIZE:BLOCK; may be given several times',
        optional: true,
        variadic: true,
        placeholder: 'path:size',
      },
      pfs: {
        kind: 'parsed',
        parse: parseCount(0, 16),
        brief: 'PFs beside the controlling one (default 1)',
        optional: true,
        placeholder: 'n',
      },
      vfs: {
        kind: 'parsed',
        parse: parseCount(0, 65_535),
        brief:
          'VFs at most: of an embedded subsystem (0 to 127, default 4), or the size of the pool of a real PF (default: all that it can have)',
        optional: true,
        placeholder: 'n',
      },
      siov: {
        kind: 'parsed',
        parse: parseCount(0, 127),
        brief: 'SIOV-like functions at most (default 4)',
        optional: true,
        placeholder: 'n',
      },
      memory: {
        kind: 'parsed',
        parse: parseSize,
        brief: 'Guest memory of each function (default 64M; 0: none)',
        optional: true,
        placeholder: 'size',
      },
      journal: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Directory of the journal',
        optional: true,
        placeholder: 'dir',
      },
      ...rehearsalFlags,
    },
  },
  func(this: CliContext, flags: Flags) {
    return runCommand(this, flags, async ({ out, signal }) => {
      const { env } = this.process;
      // Wrong ones are told before anything is started or created.
      parseRules(faultTexts(flags.fault) ?? []);
      if (flags.rate !== undefined) parseRates(flags.rate);
      const { controlling = [], vfs, force, vfioBy: by, vfToken: token } = flags;
      const embedded = { namespaces: flags.namespace, furtherPfs: flags.pfs, maxVfs: vfs, maxSiov: flags.siov };
      const own = flags.embedded ?? (controlling.length === 0 ? 'default' : undefined);
      const host = await Host.open({
        embedded: own === undefined ? [] : [{ name: own, ...embedded }],
        controlling: () => openControlling(controlling, { vfs, force, embedded, vfio: { by, token } }, { signal }),
        journal: flags.journal ?? join(defaultStateDirectory(env), 'journal'),
        memoryBytes: flags.memory ?? 64n << 20n,
      });
      const start = async (): Promise<RunningServer> => {
        const rehearsed = { faults: faultTexts(flags.fault), rates: flags.rate };
        if (rehearsed.faults !== undefined || rehearsed.rates !== undefined) {
          host.rehearse(host.findControlling(own === undefined ? undefined : `embedded:${own}`), rehearsed);
        }
        return startServer(host, flags.socket ?? defaultSocketPath(env));
      };
      const server = await start().catch(async (error: unknown) => {
        await host.close();
        throw error;
      });
      const served = host.controlling.map(controllingName);
      out.value({ serving: { socket: server.socketPath, pid: this.process.pid, controlling: served } });
      out.line(`serving ${served.join(', ')} on ${server.socketPath} (pid ${this.process.pid})`);
      const stop = (): void => void server.close().catch(() => undefined);
      signal.addEventListener('abort', stop, { once: true });
      if (signal.aborted) stop();
      await server.closed;
    });
  },
});
