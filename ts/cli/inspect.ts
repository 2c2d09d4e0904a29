import { buildCommand } from '@stricli/core';
import { createReadStream } from 'node:fs';
import { unwrapFault } from '../errors.js';
import { describe, inspect as inspectStream, summarise, type StreamItem } from '../wire/index.js';
import { commonFlags, runCommand, type CliContext, type CommonFlags } from './context.js';
import { EXIT } from './exit.js';
import { parseText, showBytes } from './values.js';

interface Flags extends CommonFlags {
  readonly summary?: boolean | undefined;
}

async function* file(path: string): AsyncGenerator<Uint8Array> {
  try {
    for await (const bytes of createReadStream(path, { highWaterMark: 1 << 20 })) yield bytes as Uint8Array;
  } catch (error) {
    throw unwrapFault(error);
  }
}

/** `towline inspect`. JSON: one StreamItem a line, then `{"summary":StreamSummary}`. Exit code 1 where the stream is damaged. */
export const inspect = buildCommand({
  docs: { brief: 'Explain a recorded migration stream frame by frame, and find damage' },
  parameters: {
    flags: {
      ...commonFlags,
      summary: { kind: 'boolean', brief: 'Only the summary', optional: true, withNegated: false },
    },
    positional: {
      kind: 'tuple',
      parameters: [{ brief: 'File that migrate --record wrote', parse: parseText, placeholder: 'file' }],
    },
  },
  func(this: CliContext, flags: Flags, path: string) {
    return runCommand(this, flags, async ({ out, signal }) => {
      async function* shown(): AsyncGenerator<StreamItem> {
        for await (const item of inspectStream(file(path), { signal })) {
          if (!flags.summary || item.type === 'damage') {
            out.value(item);
            out.line(describe(item));
          }
          yield item;
        }
      }
      const summary = await summarise(shown());
      out.value({ summary });
      out.line(
        `${summary.frames} frames: ${summary.functions} functions, ${summary.rounds} rounds, ${summary.pages} pages, memory ${showBytes(summary.memoryBytes)}, device state ${showBytes(summary.stateBytes)}`,
      );
      out.line(summary.damage === undefined ? 'whole' : `damaged ${summary.damage}`);
      return summary.damage === undefined ? EXIT.done : EXIT.failed;
    });
  },
});
