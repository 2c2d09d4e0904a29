/**
 * BAR policies: what a guest's accesses to a BAR may reach, as data. Written with {@link barPolicy} or as plain objects, compiled
 * once to an immutable filter.
 */
import { nativeSync, TowlineError } from '../errors.js';
import { binding } from '../native/api.js';
import { BarFilter } from './filter.js';

/** Which accesses a rule is about. */
export type BarAccess = 'read' | 'write' | 'both';

/** What a denied read gives: all ones, as a read that nobody answers; all zeros, as a reserved register. */
export type BarFill = 'ones' | 'zeros';

/** A little-endian value of 1, 2, 4 or 8 bytes that repeats over a rule's range from its first byte on. */
export interface BarPattern {
  readonly bytes: 1 | 2 | 4 | 8;
  /** 0 to 2^(8 * bytes) - 1. */
  readonly value: bigint;
}

/**
 * What becomes of an access.
 *
 * - `pass`: to the target as it is.
 * - `deny`: reads give `fill`, writes are dropped.
 * - `trap`: to the trap handler.
 * - `bits`: to the target, the value being `(value & and) | or`.
 * - `write-one-to-clear`: a register of the filter's own; a one that is written clears its bit.
 * - `hide`: reads as zero, writes are dropped, and no other rule may touch the range.
 * - `truncate`: the BAR ends at the rule's offset; its length has to be 0.
 */
export type BarAction =
  | { readonly kind: 'pass' }
  | { readonly kind: 'deny'; readonly fill: BarFill }
  | { readonly kind: 'trap' }
  | { readonly kind: 'bits'; readonly and: BarPattern; readonly or: BarPattern }
  | { readonly kind: 'write-one-to-clear'; readonly initial: BarPattern }
  | { readonly kind: 'hide' }
  | { readonly kind: 'truncate' };

/** One rule. Its name is for people: errors show it. */
export interface BarRule {
  readonly name: string;
  /** First byte, from the start of the BAR. No alignment is asked. */
  readonly offset: bigint;
  /** Bytes, at least one; 0 for `truncate`. */
  readonly length: bigint;
  /** Default: `both`. */
  readonly access?: BarAccess | undefined;
  readonly action: BarAction;
}

/** What happens to bytes that no rule is about. */
export type BarDefault = 'pass' | 'deny-ones' | 'deny-zeros' | 'trap';

/** Rules for one BAR. Their order does not matter: overlapping ones are refused. */
export interface BarPolicy {
  /** 1 to 2^37. */
  readonly barBytes: bigint;
  /** Default: `pass`. */
  readonly defaultRead?: BarDefault | undefined;
  /** Default: `pass`. */
  readonly defaultWrite?: BarDefault | undefined;
  /** At most 131072. */
  readonly rules: readonly BarRule[];
}

/** A pattern of one byte. */
export function u8(value: number): BarPattern {
  return { bytes: 1, value: BigInt(value) };
}

/** A pattern of two bytes. */
export function u16(value: number): BarPattern {
  return { bytes: 2, value: BigInt(value) };
}

/** A pattern of four bytes. */
export function u32(value: number): BarPattern {
  return { bytes: 4, value: BigInt(value) };
}

/** A pattern of eight bytes. */
export function u64(value: bigint): BarPattern {
  return { bytes: 8, value };
}

/** The JSON that native code compiles: 64-bit numbers are decimal strings, everything left out is filled in. */
export interface BarPolicyJson {
  barBytes: string;
  defaultRead: BarDefault;
  defaultWrite: BarDefault;
  rules: {
    name: string;
    offset: string;
    length: string;
    access: BarAccess;
    action:
      | { kind: 'pass' | 'trap' | 'hide' | 'truncate' }
      | { kind: 'deny'; fill: BarFill }
      | { kind: 'bits'; and: { bytes: number; value: string }; or: { bytes: number; value: string } }
      | { kind: 'write-one-to-clear'; initial: { bytes: number; value: string } };
  }[];
}

function patternJson(pattern: BarPattern, rule: string): { bytes: number; value: string } {
  if (pattern.value < 0n || pattern.value >> BigInt(8 * pattern.bytes) !== 0n) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      `rule "${rule}": ${pattern.value} does not fit ${pattern.bytes} bytes`,
    );
  }
  return { bytes: pattern.bytes, value: pattern.value.toString() };
}

function unsigned64(value: bigint, what: string): string {
  if (value < 0n || value >> 64n !== 0n) {
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${what} is ${value}; it has to be 0 to 2^64 - 1`);
  }
  return value.toString();
}

/** A policy as {@link BarPolicyJson}. */
export function policyJson(policy: BarPolicy): BarPolicyJson {
  return {
    barBytes: unsigned64(policy.barBytes, 'barBytes'),
    defaultRead: policy.defaultRead ?? 'pass',
    defaultWrite: policy.defaultWrite ?? 'pass',
    rules: policy.rules.map(({ name, offset, length, access, action }) => ({
      name,
      offset: unsigned64(offset, `the offset of rule "${name}"`),
      length: unsigned64(length, `the length of rule "${name}"`),
      access: access ?? 'both',
      action:
        action.kind === 'bits'
          ? { kind: 'bits', and: patternJson(action.and, name), or: patternJson(action.or, name) }
          : action.kind === 'write-one-to-clear'
            ? { kind: 'write-one-to-clear', initial: patternJson(action.initial, name) }
            : action,
    })),
  };
}

/**
 * Checks and compiles a policy.
 * @throws TowlineError `ERR_TOWLINE_POLICY` names the rules that overlap or can't be.
 */
export function compileBarPolicy(policy: BarPolicy): BarFilter {
  const json = JSON.stringify(policyJson(policy));
  return BarFilter.fromBytes(nativeSync(() => binding().compileBarPolicy(json)));
}

/** Builds a {@link BarPolicy} rule by rule; immutable, so that a common start can be shared. */
export class BarPolicyBuilder implements BarPolicy {
  readonly barBytes: bigint;
  readonly defaultRead: BarDefault;
  readonly defaultWrite: BarDefault;
  readonly rules: readonly BarRule[];

  constructor(policy: BarPolicy) {
    this.barBytes = policy.barBytes;
    this.defaultRead = policy.defaultRead ?? 'pass';
    this.defaultWrite = policy.defaultWrite ?? 'pass';
    this.rules = policy.rules;
  }

  /** The same with another default. */
  otherwise(read: BarDefault, write: BarDefault = read): BarPolicyBuilder {
    return new BarPolicyBuilder({ ...this.#data(), defaultRead: read, defaultWrite: write });
  }

  /** Adds any rule. */
  rule(rule: BarRule): BarPolicyBuilder {
    return new BarPolicyBuilder({ ...this.#data(), rules: [...this.rules, rule] });
  }

  /** To the target as it is. */
  pass(name: string, offset: bigint, length: bigint, access: BarAccess = 'both'): BarPolicyBuilder {
    return this.rule({ name, offset, length, access, action: { kind: 'pass' } });
  }

  /** Reads give `fill`, writes are dropped. */
  deny(name: string, offset: bigint, length: bigint, fill: BarFill, access: BarAccess = 'both'): BarPolicyBuilder {
    return this.rule({ name, offset, length, access, action: { kind: 'deny', fill } });
  }

  /** To the trap handler. */
  trap(name: string, offset: bigint, length: bigint, access: BarAccess = 'both'): BarPolicyBuilder {
    return this.rule({ name, offset, length, access, action: { kind: 'trap' } });
  }

  /** Keeps only the bits of `mask`. */
  mask(name: string, offset: bigint, length: bigint, mask: BarPattern, access: BarAccess = 'both'): BarPolicyBuilder {
    return this.rule({ name, offset, length, access, action: { kind: 'bits', and: mask, or: u8(0) } });
  }

  /** Sets the bits of `bits`. */
  setBits(
    name: string,
    offset: bigint,
    length: bigint,
    bits: BarPattern,
    access: BarAccess = 'both',
  ): BarPolicyBuilder {
    return this.rule({ name, offset, length, access, action: { kind: 'bits', and: u8(0xff), or: bits } });
  }

  /** A register of the filter's own whose bits are cleared by writing ones. */
  writeOneToClear(name: string, offset: bigint, length: bigint, initial: BarPattern): BarPolicyBuilder {
    return this.rule({ name, offset, length, action: { kind: 'write-one-to-clear', initial } });
  }

  /** Reads as zero and drops writes. */
  hide(name: string, offset: bigint, length: bigint): BarPolicyBuilder {
    return this.rule({ name, offset, length, action: { kind: 'hide' } });
  }

  /** Leaves the first `visibleBytes`. */
  truncate(name: string, visibleBytes: bigint): BarPolicyBuilder {
    return this.rule({ name, offset: visibleBytes, length: 0n, action: { kind: 'truncate' } });
  }

  /** See {@link compileBarPolicy}. */
  compile(): BarFilter {
    return compileBarPolicy(this);
  }

  #data(): BarPolicy {
    const { barBytes, defaultRead, defaultWrite, rules } = this;
    return { barBytes, defaultRead, defaultWrite, rules };
  }
}

/** A policy under which everything passes, to add rules to. `barBytes` is 1 to 2^37. */
export function barPolicy(barBytes: bigint): BarPolicyBuilder {
  return new BarPolicyBuilder({ barBytes, rules: [] });
}
