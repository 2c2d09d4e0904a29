#!/usr/bin/env node
/**
 * The command `towline`. Exit codes are in exit.ts.
 */
import { buildApplication, buildRouteMap, help, run, version as versionFlag } from '@stricli/core';
import { version } from '../version.js';
import { bench } from './bench.js';
import { checkpoint } from './checkpoint.js';
import { configure } from './configure.js';
import { conformance } from './conformance.js';
import type { CliContext } from './context.js';
import { EXIT } from './exit.js';
import { explain } from './explain.js';
import { expose } from './expose.js';
import { inspect } from './inspect.js';
import { list } from './list.js';
import { migrate } from './migrate.js';
import { provision } from './provision.js';
import { receive } from './receive.js';
import { recover } from './recover.js';
import { release } from './release.js';
import { restore } from './restore.js';
import { serve } from './serve.js';

const routes = buildRouteMap({
  routes: {
    list,
    provision,
    configure,
    expose,
    release,
    serve,
    migrate,
    receive,
    checkpoint,
    restore,
    explain,
    inspect,
    recover,
    conformance,
    bench,
  },
  docs: {
    brief: 'Live-migrates PCI functions by commanding their controlling function',
    fullDescription:
      'Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused or mismatch, 4 in doubt, 5 nobody serves or no such function, 130 interrupted.',
  },
});

const app = buildApplication<CliContext>(
  routes,
  {
    name: 'towline',
    scanner: { caseStyle: 'allow-kebab-for-camel' },
    documentation: { caseStyle: 'convert-camel-to-kebab' },
  },
  {
    help: help({
      brief: 'Print help and exit',
      formatting: { useAliasInUsageLine: false, onlyRequiredInUsageLine: true, caseStyle: 'convert-camel-to-kebab' },
    }),
    version: versionFlag({ brief: 'Print the version and exit', alias: false, info: { currentVersion: version } }),
  },
);

// A reader that goes away (`towline list | head -1`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(process.exitCode ?? 0);
  throw error;
});

await run(app, process.argv.slice(2), { process: process as CliContext['process'] });
// stricli's own codes are negative; all of those that a command line can cause are wrong usage.
if (typeof process.exitCode === 'number' && process.exitCode < 0) process.exitCode = EXIT.usage;
