/**
 * Where the socket and the state of `towline serve` are, and what is checked of them.
 */
import { constants } from 'node:fs';
import { lstat, mkdir } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { TowlineError, unwrapFault } from '../errors.js';

function uid(): number {
  return process.geteuid?.() ?? 0;
}

/** The socket where none is named: in `$XDG_RUNTIME_DIR/towline`, or in a directory of this user's below `/tmp`. */
export function defaultSocketPath(env: NodeJS.ProcessEnv = process.env): string {
  if (env['TOWLINE_SOCKET']) return env['TOWLINE_SOCKET'];
  const runtime = env['XDG_RUNTIME_DIR'];
  return runtime ? join(runtime, 'towline', 'serve.sock') : join('/tmp', `towline-${uid()}`, 'serve.sock');
}

/** Where journals are kept where no directory is named: `$XDG_STATE_HOME/towline` or `~/.local/state/towline`. */
export function defaultStateDirectory(env: NodeJS.ProcessEnv = process.env): string {
  return join(env['XDG_STATE_HOME'] || join(homedir(), '.local', 'state'), 'towline');
}

/**
 * Makes the directory of the socket (0700) where it is missing, and refuses one in which somebody else could put another socket in
 * its place.
 */
export async function checkSocketDirectory(path: string): Promise<void> {
  const directory = dirname(path);
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const { mode, uid: owner } = await lstat(directory).then((s) => {
      if (!s.isDirectory()) throw new TowlineError('ERR_TOWLINE_PERMISSION', `${directory} is no directory`);
      return s;
    });
    if (owner !== uid() && owner !== 0) {
      throw new TowlineError(
        'ERR_TOWLINE_PERMISSION',
        `${directory} belongs to user ${owner}; it has to belong to user ${uid()} or to root`,
      );
    }
    // The sticky bit of /tmp helps nothing here: others could still make the socket before this process does.
    if ((mode & (constants.S_IWGRP | constants.S_IWOTH)) !== 0) {
      throw new TowlineError(
        'ERR_TOWLINE_PERMISSION',
        `others may write to ${directory}: take that right away (chmod go-w), or name a directory of your own`,
      );
    }
  } catch (error) {
    throw unwrapFault(error);
  }
}

/**
 * Whether a socket of this user is at `path`, which a process that ended may have left; false where there is nothing.
 * @throws TowlineError `ERR_TOWLINE_EXISTS` for anything that is no socket, `ERR_TOWLINE_PERMISSION` for another user's socket.
 */
export async function checkSocketPath(path: string): Promise<boolean> {
  let stats;
  try {
    stats = await lstat(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw unwrapFault(error);
  }
  if (!stats.isSocket()) throw new TowlineError('ERR_TOWLINE_EXISTS', `${path} is there and is no socket`);
  if (stats.uid !== uid())
    throw new TowlineError('ERR_TOWLINE_PERMISSION', `${path} belongs to user ${stats.uid}, not to user ${uid()}`);
  return true;
}

/** For a client: the socket has to belong to this user or to root, or somebody else's process would get the commands. */
export async function checkSocketOwner(path: string): Promise<void> {
  let stats;
  try {
    stats = await lstat(path);
  } catch (cause) {
    throw new TowlineError('ERR_TOWLINE_GONE', `there is no ${path}: start one with towline serve`, { cause });
  }
  if (!stats.isSocket()) throw new TowlineError('ERR_TOWLINE_PERMISSION', `${path} is no socket`);
  if (stats.uid !== uid() && stats.uid !== 0) {
    throw new TowlineError(
      'ERR_TOWLINE_PERMISSION',
      `${path} belongs to user ${stats.uid}, not to user ${uid()} or root`,
    );
  }
}
