import { buildCommand } from '@stricli/core';
import type { CheckResult } from '../conformance/check.js';
import { conformVfio } from '../conformance/vfio.js';
import { NativeHostPort } from '../drivers/host/port.js';
import { throwIfAborted } from '../abort.js';
import { TowlineError } from '../errors.js';
import { clientFlags, runClient, runCommand, type ClientFlags, type CliContext, type Output } from './context.js';
import { EXIT, type ExitCode } from './exit.js';
import { parseCount, parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly destructive?: boolean | undefined;
  readonly vfio?: string | undefined;
  readonly second?: string | undefined;
  readonly vfioBy?: 'auto' | 'group' | 'cdev' | undefined;
  readonly vfToken?: string | undefined;
  readonly checkTimeout?: number | undefined;
}

function show(out: Output, check: CheckResult): void {
  out.value(check);
  out.line(`${check.outcome.padEnd(13)} ${check.check}: ${check.why}`);
}

function end(out: Output, result: { checks: number; failed: number }): ExitCode {
  out.value(result);
  out.line(`${result.checks} checks, ${result.failed} failed`);
  return result.failed === 0 ? EXIT.done : EXIT.failed;
}

/** Opens the devices in this process; no process has to serve. */
async function ofDevices(out: Output, names: readonly string[], flags: Flags, signal: AbortSignal): Promise<ExitCode> {
  const { destructive = false, vfioBy, vfToken, checkTimeout: checkTimeoutMs } = flags;
  const opening = {
    ...(vfioBy === undefined ? {} : { by: vfioBy }),
    ...(vfToken === undefined ? {} : { token: vfToken }),
  };
  const result = { checks: 0, failed: 0 };
  for await (const check of conformVfio(new NativeHostPort(), names, { destructive, checkTimeoutMs, ...opening })) {
    show(out, check);
    result.checks += 1;
    if (check.outcome === 'failed') result.failed += 1;
    throwIfAborted(signal);
  }
  return end(out, result);
}

/** `towline conformance`. JSON: one `{check,outcome,why}` a line, then `{"checks":n,"failed":n}`. Exit code 1 where one failed. */
export const conformance = buildCommand({
  docs: {
    brief: 'Check the state channel of a function, or of any VFIO device, against the interface',
    fullDescription:
      'Of a serving process: a second function of the same kind is provisioned for as long as it takes. With --vfio a VFIO device of this host is opened here, and no process has to serve; --second names another one like it. What is in use is refused. What there were no means to stimulate is not-exercised, never passed.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      destructive: {
        kind: 'boolean',
        brief: 'The function may be reset and its state overwritten',
        optional: true,
        withNegated: false,
      },
      vfio: {
        kind: 'parsed',
        parse: parseText,
        brief: 'PCI address or UUID of a mediated device, bound to a VFIO driver',
        optional: true,
        placeholder: 'device',
      },
      second: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Another device like the one of --vfio: state moves between them',
        optional: true,
        placeholder: 'device',
      },
      vfioBy: {
        kind: 'enum',
        values: ['auto', 'group', 'cdev'],
        brief: 'How it is opened (default auto: cdev where there is one)',
        optional: true,
      },
      checkTimeout: {
        kind: 'parsed',
        parse: parseCount(1, 86_400_000),
        brief: 'With --vfio: how long one check may take, in ms (default 30000)',
        optional: true,
        placeholder: 'ms',
      },
      vfToken: {
        kind: 'parsed',
        parse: parseText,
        brief: 'UUID of the VF token, where the PF is bound to vfio-pci',
        optional: true,
        placeholder: 'uuid',
      },
    },
    positional: {
      kind: 'tuple',
      parameters: [
        {
          brief: 'UUID, name, or the first 8 or more characters of a UUID; left out with --vfio',
          parse: parseText,
          placeholder: 'function',
          optional: true,
        },
      ],
    },
  },
  func(this: CliContext, flags: Flags, fn?: string) {
    const { vfio, second } = flags;
    if (vfio !== undefined || fn === undefined) {
      return runCommand(this, flags, async ({ out, signal }) => {
        if (vfio === undefined || fn !== undefined) {
          throw new TowlineError(
            'ERR_TOWLINE_INVALID_ARGUMENT',
            'name a function of a serving process, or a device by --vfio',
          );
        }
        return ofDevices(out, second === undefined ? [vfio] : [vfio, second], flags, signal);
      });
    }
    return runClient(this, flags, async (client, { out, signal }) => {
      const params = { function: fn, destructive: flags.destructive ?? false };
      return end(out, await client.call('conformance', params, { signal, onEvent: (check) => show(out, check) }));
    });
  },
});
