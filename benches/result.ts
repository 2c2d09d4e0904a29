/** What one case of a bench has measured. Every figure is a median over the samples. */
export interface Result {
  readonly bench: string;
  readonly case: string;
  /** Of `ours` and `theirs`. */
  readonly unit: string;
  readonly ours: number;
  /** What `theirs` is of. */
  readonly peer: string;
  readonly theirs: number;
  /** Median of `ours / theirs` of neighbouring samples. */
  readonly ratio: number;
  /** In words, over `ours`, `theirs` and `ratio`. */
  readonly goal: string;
  readonly met: boolean;
  readonly samples: number;
  /** Median distance of the samples' ratios from `ratio`. */
  readonly ratioMad: number;
  /** Processes that wanted a processor during the last minute, the bench's own among them. */
  readonly load: number;
}

const strings = ['bench', 'case', 'unit', 'peer', 'goal'] as const;
const numbers = ['ours', 'theirs', 'ratio', 'samples', 'ratioMad', 'load'] as const;

/** Reads one line of a measuring program. Throws where it is something else. */
export function parseResult(line: string): Result {
  const value: unknown = JSON.parse(line);
  if (!isResult(value)) throw new Error(`the measuring program printed something else than a result: ${line}`);
  return value;
}

function isResult(value: unknown): value is Result {
  if (typeof value !== 'object' || value === null) return false;
  const fields = value as Readonly<Record<string, unknown>>;
  return (
    strings.every((name) => typeof fields[name] === 'string') &&
    numbers.every((name) => Number.isFinite(fields[name])) &&
    typeof fields['met'] === 'boolean'
  );
}
