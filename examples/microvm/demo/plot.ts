/** A picture of a move over time, for a terminal: what the guest did, and when it could not. */

/** A cumulative count at a time, in milliseconds of any clock. */
export interface Sample {
  atMs: number;
  heartbeats: number;
  pagesWritten: number;
  ios: number;
}

const LEVELS = ' .:-=+*#%@';
const ROWS = [
  ['pages written', 'pagesWritten'],
  ['I/Os', 'ios'],
  ['heartbeats', 'heartbeats'],
] as const;

/**
 * One row a count, one column a stretch of time; a blank is a stretch in which the guest did nothing. The rates of each row are relative to its
 * own largest, which is told at its end.
 */
export function activity(samples: readonly Sample[], fromMs: number, toMs: number, columns = 72): string {
  const width = Math.max(1, toMs - fromMs) / columns;
  const rows = ROWS.map(([title, name]) => {
    const rates = Array.from({ length: columns }, (_, column) => {
      const [a, b] = [fromMs + column * width, fromMs + (column + 1) * width];
      return ((countAt(samples, name, b) - countAt(samples, name, a)) / width) * 1000;
    });
    const most = Math.max(...rates, 1e-9);
    const cells = rates.map((rate) => LEVELS[rate <= 0 ? 0 : Math.max(1, Math.round((rate / most) * 9))]);
    return `  ${title.padEnd(14)}|${cells.join('')}| up to ${most.toFixed(0)}/s\n`;
  });
  const end = `${((toMs - fromMs) / 1000).toFixed(1)} s`;
  return `${rows.join('')}  ${''.padEnd(15)}0${end.padStart(columns - 1)}\n`;
}

/** The count at a time, between two samples by the straight line through them. */
function countAt(samples: readonly Sample[], name: (typeof ROWS)[number][1], atMs: number): number {
  let before: Sample | undefined;
  for (const sample of samples) {
    if (sample.atMs >= atMs) {
      if (before === undefined) return sample[name];
      const share = (atMs - before.atMs) / Math.max(1e-9, sample.atMs - before.atMs);
      return before[name] + share * (sample[name] - before[name]);
    }
    before = sample;
  }
  return before?.[name] ?? 0;
}

/** A bar for each number, relative to the largest; on a logarithmic scale, as each pass has far less to do than the one before. */
export function bars(rows: readonly { title: string; value: number; text: string }[], columns = 48): string {
  const most = Math.max(...rows.map(({ value }) => Math.log2(value + 1)), 1);
  return rows
    .map(({ title, value, text }) => {
      const filled = Math.round((Math.log2(value + 1) / most) * columns);
      return `  ${title.padEnd(10)}|${'#'.repeat(filled).padEnd(columns)}| ${text}\n`;
    })
    .join('');
}
