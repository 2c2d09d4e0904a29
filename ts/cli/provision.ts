import { buildCommand } from '@stricli/core';
import { exposureNames, functionKinds, type ExposureName, type FunctionKind } from '../function/types.js';
import { clientFlags, given, runClient, type ClientFlags, type CliContext } from './context.js';
import { socketPathOf, vfioUserFlag } from './expose.js';
import { showFunction } from './show.js';
import { parseCount, parseOnOff, parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly kind: FunctionKind;
  readonly queues?: number | undefined;
  readonly vectors?: number | undefined;
  readonly namespace?: readonly number[] | undefined;
  readonly migration?: boolean | undefined;
  readonly hwAddress?: string | undefined;
  readonly expose?: ExposureName | undefined;
  readonly uuid?: string | undefined;
  readonly name?: string | undefined;
  readonly type?: string | undefined;
  readonly guest?: string | undefined;
  readonly vfioUser?: string | undefined;
}

/** Flags that `configure` has as well. */
export const resourceFlags = {
  queues: { kind: 'parsed', parse: parseCount(1, 65_535), brief: 'I/O queue pairs', optional: true, placeholder: 'n' },
  vectors: {
    kind: 'parsed',
    parse: parseCount(1, 2048),
    brief: "Interrupt vectors, the admin queue's included",
    optional: true,
    placeholder: 'n',
  },
  namespace: {
    kind: 'parsed',
    parse: parseCount(1, 0xffff_fffd),
    brief: 'Namespace to attach; may be given several times',
    optional: true,
    variadic: true,
    placeholder: 'nsid',
  },
  migration: {
    kind: 'parsed',
    parse: parseOnOff,
    brief: 'Enable live migration: on or off',
    optional: true,
    placeholder: 'on|off',
  },
  hwAddress: {
    kind: 'parsed',
    parse: parseText,
    brief: 'Hardware address of its port (devlink): 02:00:00:00:00:01',
    optional: true,
    placeholder: 'address',
  },
} as const;

/** `towline provision`. JSON: FunctionInfo. */
export const provision = buildCommand({
  docs: {
    brief: 'Provision a function: resources, namespaces, migration, and only then make it visible',
    fullDescription: 'Whole or not at all: where a step fails, the steps before are undone in reverse order.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      ...resourceFlags,
      ...vfioUserFlag,
      kind: { kind: 'enum', values: functionKinds, brief: 'What to provision' },
      expose: { kind: 'enum', values: exposureNames, brief: 'How to make it visible (default: none)', optional: true },
      uuid: {
        kind: 'parsed',
        parse: parseText,
        brief: 'UUID that it keeps through migrations (default: a random one)',
        optional: true,
        placeholder: 'uuid',
      },
      name: { kind: 'parsed', parse: parseText, brief: 'Name for people', optional: true, placeholder: 'name' },
      type: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Type of a mediated device (mdev), mtty-2 say (default: the only one that has instances left)',
        optional: true,
        placeholder: 'type',
      },
      guest: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Guest that it belongs to: functions of one guest have one memory, and are migrated together',
        optional: true,
        placeholder: 'name',
      },
    },
    positional: {
      kind: 'tuple',
      parameters: [
        {
          brief: 'Controlling function; may be left out where there is one',
          parse: parseText,
          placeholder: 'controlling',
          optional: true,
        },
      ],
    },
  },
  func(this: CliContext, flags: Flags, controlling?: string) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const { kind, uuid, name, queues, vectors, namespace, migration, expose, type, guest, hwAddress } = flags;
      const spec = { kind, uuid, name, queues, vectors, namespaces: namespace, migration, expose, type, hwAddress };
      const fn = await client.call(
        'provision',
        { spec, ...given({ controlling, guest }), ...socketPathOf(flags.vfioUser) },
        { signal },
      );
      showFunction(out, 'provisioned', fn);
    });
  },
});
