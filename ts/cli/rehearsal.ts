/**
 * The flags by which faults and rates of an embedded subsystem are given, and how these are shown.
 */
import type { RehearsalInfo } from '../serve/protocol.js';
import type { Output } from './context.js';
import { parseText } from './values.js';

/** Flags of `serve` and `configure`. They are read by whoever serves, so that a wrong one is a typed error in any case. */
export const rehearsalFlags = {
  fault: {
    kind: 'parsed',
    parse: parseText,
    brief:
      'Rehearse a fault, such as function=vf0,opcode=write,nth=3,count=1,action=delay:50ms; may be given several times, the first that fits a command acts. Also queue=admin|io, and action status:CODE, drop-completion, repeat, hang. none: no faults',
    optional: true,
    variadic: true,
    placeholder: 'rule',
  },
  rate: {
    kind: 'parsed',
    parse: parseText,
    brief:
      'Rehearse a slow device, such as save=100MiB/s,load-latency=20ms; also load, save-latency, io-latency. none: as fast as it can be',
    optional: true,
    placeholder: 'rates',
  },
} as const;

/** The rules of `--fault`; `none`, which stands alone, is an empty list. */
export function faultTexts(fault: readonly string[] | undefined): string[] | undefined {
  if (fault === undefined) return undefined;
  return fault.length === 1 && fault[0] === 'none' ? [] : [...fault];
}

/** Rules with how often each was met, and rates. */
export function showRehearsal(out: Output, { faults, rates }: RehearsalInfo): void {
  for (const { rule, active, hits } of faults) {
    out.line(`  fault ${rule}: hit ${hits} times${active ? '' : ', waits for its function'}`);
  }
  for (const [name, value] of Object.entries(rates)) out.line(`  rate ${name}: ${String(value)}`);
}
