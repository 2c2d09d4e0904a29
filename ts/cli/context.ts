/**
 * What every command has: where it prints, how it is interrupted, and how its outcome becomes an exit code.
 */
import type { CommandContext, StricliProcess } from '@stricli/core';
import { TowlineError, unwrapFault } from '../errors.js';
import { ServeClient } from '../serve/client.js';
import { defaultSocketPath } from '../serve/paths.js';
import { EXIT, exitCodeOf, type ExitCode } from './exit.js';
import { parseText } from './values.js';

/** What a command is given. */
export interface CliContext extends CommandContext {
  // stricli writes `exitCode` and does not know that Node's may be absent.
  readonly process: NodeJS.Process & StricliProcess;
}

/** Flags of every command. */
export interface CommonFlags {
  readonly json?: boolean | undefined;
}

/** Flags of every command that talks to a serving process. */
export interface ClientFlags extends CommonFlags {
  readonly socket?: string | undefined;
}

/** Documentation of {@link CommonFlags}. */
export const commonFlags = {
  json: { kind: 'boolean', brief: 'Print JSON, one value a line; errors too', optional: true, withNegated: false },
} as const;

/** Documentation of {@link ClientFlags}. */
export const clientFlags = {
  ...commonFlags,
  socket: {
    kind: 'parsed',
    parse: parseText,
    brief: 'Socket of the serving process (default: $TOWLINE_SOCKET, or one in $XDG_RUNTIME_DIR)',
    optional: true,
    placeholder: 'path',
  },
} as const;

/** Where a command prints. */
export class Output {
  readonly json: boolean;
  readonly isTerminal: boolean;
  readonly #process: NodeJS.Process;

  constructor(process: NodeJS.Process, flags: CommonFlags) {
    this.#process = process;
    this.json = flags.json ?? false;
    this.isTerminal = !this.json && process.stderr.isTTY && process.env['TERM'] !== 'dumb';
  }

  /** A value for programs; printed with `--json` only. */
  value(value: unknown): void {
    if (this.json) this.#process.stdout.write(`${JSON.stringify(value)}\n`);
  }

  /** A line for people; printed without `--json` only. */
  line(text: string): void {
    if (!this.json) this.#process.stdout.write(`${text}\n`);
  }

  /** Columns for people. */
  table(header: readonly string[], rows: readonly (readonly string[])[]): void {
    const widths = header.map((h, i) => Math.max(h.length, ...rows.map((r) => (r[i] ?? '').length)));
    for (const row of [header, ...rows])
      this.line(
        row
          .map((cell, i) => cell.padEnd(widths[i] ?? 0))
          .join('  ')
          .trimEnd(),
      );
  }

  /** What is no result: progress and hints. */
  note(text: string): void {
    if (!this.json) this.#process.stderr.write(`${text}\n`);
  }

  /** Overwrites the line it wrote before; on a terminal only. */
  progress(text: string): void {
    if (!this.isTerminal) return;
    const width = Math.max(20, (this.#process.stderr.columns || 80) - 1);
    this.#process.stderr.write(`\r\u001b[K${text.slice(0, width)}`);
  }

  /** Takes the progress line away. */
  endProgress(): void {
    if (this.isTerminal) this.#process.stderr.write('\r\u001b[K');
  }

  error(error: unknown): void {
    const fault = unwrapFault(error);
    this.endProgress();
    if (this.json) {
      this.value({ error: fault.toJSON() });
      return;
    }
    this.#process.stderr.write(`towline: ${fault.message} (${fault.code})\n`);
    this.#process.stderr.write(`  ${fault.mend}\n`);
    // Of a migration that was rolled back they are the cause's.
    const of = ({ details }: TowlineError) => (details as { mismatches?: unknown } | undefined)?.mismatches;
    const { cause } = fault;
    const mismatches = of(fault) ?? (cause instanceof TowlineError ? of(cause) : undefined);
    if (!Array.isArray(mismatches)) return;
    for (const { message, mend } of mismatches as { message: string; mend: string }[]) {
      this.#process.stderr.write(`  - ${message}\n    ${mend}\n`);
    }
  }
}

/** What a running command has. */
export interface Running {
  readonly out: Output;
  /** Fires at Ctrl-C and SIGTERM. A second Ctrl-C ends the process at once. */
  readonly signal: AbortSignal;
}

/** Runs a command's work; its error is printed and becomes the exit code. */
export async function runCommand(
  { process }: CliContext,
  flags: CommonFlags,
  work: (running: Running) => Promise<ExitCode | void>,
): Promise<void> {
  const out = new Output(process, flags);
  const controller = new AbortController();
  const interrupt = (signal: NodeJS.Signals): void => {
    if (controller.signal.aborted) process.exit(EXIT.interrupted);
    out.note(`${signal}: undoing what is under way; once more ends at once`);
    controller.abort(new TowlineError('ERR_TOWLINE_ABORTED', `interrupted by ${signal}`));
  };
  process.on('SIGINT', interrupt);
  process.on('SIGTERM', interrupt);
  try {
    process.exitCode = (await work({ out, signal: controller.signal })) ?? EXIT.done;
  } catch (error) {
    out.error(error);
    process.exitCode = exitCodeOf(error);
  } finally {
    process.off('SIGINT', interrupt);
    process.off('SIGTERM', interrupt);
  }
}

/** As {@link runCommand}, with a connection to the serving process. */
export function runClient(
  context: CliContext,
  flags: ClientFlags,
  work: (client: ServeClient, running: Running) => Promise<ExitCode | void>,
): Promise<void> {
  return runCommand(context, flags, async (running) => {
    const client = await ServeClient.connect(flags.socket ?? defaultSocketPath(context.process.env));
    try {
      return await work(client, running);
    } finally {
      client.close();
    }
  });
}

/** The positional of every command that is about one function. */
export const functionPosition = {
  kind: 'tuple',
  parameters: [
    { brief: 'UUID, name, or the first 8 or more characters of a UUID', parse: parseText, placeholder: 'function' },
  ],
} as const;

/** `exactOptionalPropertyTypes`: leaves out what is `undefined`. */
export function given<T extends object>(values: T): { [K in keyof T]?: NonNullable<T[K]> } {
  return Object.fromEntries(Object.entries(values).filter(([, v]) => v !== undefined)) as {
    [K in keyof T]?: NonNullable<T[K]>;
  };
}
