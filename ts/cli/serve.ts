import { buildCommand } from '@stricli/core';
import { join } from 'node:path';
import { parseRates } from '../rehearsal/rule.js';
import { Host } from '../serve/host.js';
import { defaultSocketPath, defaultStateDirectory } from '../serve/paths.js';
import { parseRules } from '../serve/rehearsal.js';
import { startServer, type RunningServer } from '../serve/server.js';
import { clientFlags, runCommand, type ClientFlags, type CliContext } from './context.js';
import { faultTexts, rehearsalFlags } from './rehearsal.js';
import { parseCount, parseNamespace, parseSize, parseText } from './values.js';

interface Flags extends ClientFlags {
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
      'The socket has mode 0600 in a directory that only this user or root can write, so only they can connect; Node can not ask for the credentials of a peer. The functions end with this process, as in a power failure. Ctrl-C ends it.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      embedded: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Name of the embedded subsystem to start (default: default)',
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
        parse: parseCount(0, 127),
        brief: 'VFs at most (default 4)',
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
      const host = await Host.open({
        embedded: [
          {
            name: flags.embedded ?? 'default',
            namespaces: flags.namespace,
            furtherPfs: flags.pfs,
            maxVfs: flags.vfs,
            maxSiov: flags.siov,
          },
        ],
        journal: flags.journal ?? join(defaultStateDirectory(env), 'journal'),
        memoryBytes: flags.memory ?? 64n << 20n,
      });
      const start = async (): Promise<RunningServer> => {
        host.rehearse(host.findControlling(undefined), { faults: faultTexts(flags.fault), rates: flags.rate });
        return startServer(host, flags.socket ?? defaultSocketPath(env));
      };
      const server = await start().catch(async (error: unknown) => {
        await host.close();
        throw error;
      });
      const controlling = host.controlling.map((c) => c.address);
      out.value({ serving: { socket: server.socketPath, pid: this.process.pid, controlling } });
      out.line(`serving ${controlling.join(', ')} on ${server.socketPath} (pid ${this.process.pid})`);
      const stop = (): void => void server.close();
      signal.addEventListener('abort', stop, { once: true });
      if (signal.aborted) stop();
      await server.closed;
    });
  },
});
