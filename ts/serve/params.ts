/**
 * Reads the parameters of a request: whoever sent them may send anything.
 */
import { TowlineError } from '../errors.js';

/** The parameters of one request. Every getter throws `ERR_TOWLINE_INVALID_ARGUMENT` where the type or the range is wrong. */
export class Params {
  readonly #values: Record<string, unknown>;
  readonly #where: string;

  constructor(values: unknown, where: string) {
    if (values !== undefined && (typeof values !== 'object' || values === null || Array.isArray(values))) {
      throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${where}: the parameters have to be an object`);
    }
    this.#values = (values ?? {}) as Record<string, unknown>;
    this.#where = where;
  }

  #fail(name: string, wanted: string): never {
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${this.#where}: ${name} has to be ${wanted}`);
  }

  #get(name: string): unknown {
    const value = Object.hasOwn(this.#values, name) ? this.#values[name] : undefined;
    return value === null ? undefined : value;
  }

  optionalText(name: string, maxChars = 4096): string | undefined {
    const value = this.#get(name);
    if (value === undefined) return undefined;
    if (typeof value !== 'string' || value.length === 0 || value.length > maxChars || value.includes('\0')) {
      this.#fail(name, `a text of 1 to ${maxChars} characters`);
    }
    return value;
  }

  text(name: string, maxChars?: number): string {
    return this.optionalText(name, maxChars) ?? this.#fail(name, 'given');
  }

  optionalCount(name: string, least: number, most: number): number | undefined {
    const value = this.#get(name);
    if (value === undefined) return undefined;
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < least || value > most) {
      this.#fail(name, `a whole number from ${least} to ${most}`);
    }
    return value;
  }

  optionalFlag(name: string): boolean | undefined {
    const value = this.#get(name);
    if (value === undefined || typeof value === 'boolean') return value;
    return this.#fail(name, 'true or false');
  }

  optionalChoice<T extends string>(name: string, choices: readonly T[]): T | undefined {
    const value = this.#get(name);
    if (value === undefined) return undefined;
    return choices.find((c) => c === value) ?? this.#fail(name, `one of ${choices.join(', ')}`);
  }

  choice<T extends string>(name: string, choices: readonly T[]): T {
    return this.optionalChoice(name, choices) ?? this.#fail(name, 'given');
  }

  optionalTexts(name: string, least: number, most: number, maxChars: number): string[] | undefined {
    return this.#get(name) === undefined ? undefined : this.texts(name, least, most, maxChars);
  }

  texts(name: string, least: number, most: number, maxChars = 256): string[] {
    const value = this.#get(name);
    if (
      !Array.isArray(value) ||
      value.length < least ||
      value.length > most ||
      !value.every((v) => typeof v === 'string' && v.length <= maxChars)
    ) {
      this.#fail(name, `a list of ${least} to ${most} texts`);
    }
    return value as string[];
  }

  optionalCounts(name: string, least: number, most: number): number[] | undefined {
    const value = this.#get(name);
    if (value === undefined) return undefined;
    const right = (v: unknown): boolean => typeof v === 'number' && Number.isSafeInteger(v) && v >= least && v <= most;
    if (!Array.isArray(value) || value.length > 1024 || !value.every(right)) {
      this.#fail(name, `a list of at most 1024 whole numbers from ${least} to ${most}`);
    }
    return value as number[];
  }

  /** Parameters within the parameters; empty where they are left out. */
  nested(name: string): Params {
    return new Params(this.#get(name), `${this.#where}: ${name}`);
  }
}
