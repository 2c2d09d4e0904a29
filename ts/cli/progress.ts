/**
 * Progress of a migration: a bar on a terminal, plain lines otherwise, the events themselves with `--json`.
 */
import type { MigrationEvent } from '../migration/progress.js';
import type { Output } from './context.js';
import { showBytes } from './values.js';

/** A bar of `width` characters. */
export function bar(done: number, total: number, width: number): string {
  const part = total > 0 ? Math.min(1, Math.max(0, done / total)) : 0;
  const filled = Math.round(part * width);
  return `[${'#'.repeat(filled)}${'.'.repeat(width - filled)}]`;
}

/** Shows events as they come. With `--json` each is one line: `{"event": …}`. */
export function progressPrinter(out: Output): (event: MigrationEvent | { type: 'listening'; address: string }) => void {
  let phase = 'offer';
  return (event) => {
    // The report is the result of the command, and printed as such.
    if (event.type !== 'report') out.value({ event });
    switch (event.type) {
      case 'listening':
        out.note(`listening on ${event.address}`);
        break;
      case 'phase':
        phase = event.phase;
        if (out.isTerminal) out.progress(phase);
        else out.note(`phase ${phase}`);
        break;
      case 'pages':
        out.progress(
          `${phase} round ${event.round} ${bar(event.sentPages, event.totalPages, 30)} ${event.sentPages}/${event.totalPages} pages, ${showBytes(event.wireBytes)}`,
        );
        break;
      case 'checked':
        out.progress(`check ${bar(event.bytes, event.totalBytes, 30)} ${showBytes(event.bytes)}`);
        break;
      case 'round':
        out.endProgress();
        out.note(
          `round ${event.round}: ${event.pages} pages in ${event.ms.toFixed(0)} ms, ${event.dirtyPagesAfter} dirty since`,
        );
        break;
      case 'converge':
        out.endProgress();
        if (event.action === 'throttle') out.note(`vCPUs throttled by ${event.percent} %: ${event.why}`);
        if (event.action === 'rate-limit') {
          const limit = event.bytesPerSecond === null ? 'no limit any more' : `${showBytes(event.bytesPerSecond)}/s`;
          out.note(`function ${event.function}: ${limit}: ${event.why}`);
        }
        break;
      case 'mismatch':
        out.endProgress();
        for (const { message, mend } of event.mismatches) out.note(`mismatch: ${message}\n  mend: ${mend}`);
        break;
      case 'in-doubt':
        out.endProgress();
        out.note(`in doubt: ${event.why}`);
        break;
      case 'report':
        out.endProgress();
        break;
      default:
        break;
    }
  };
}
