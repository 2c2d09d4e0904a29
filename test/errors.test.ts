import test from 'ava';
import { abortError, throwIfAborted, withSignal } from '#towline/abort.js';
import { errorCodes, errorFromJson, isTowlineError, TowlineError, unwrapFault } from '#towline/errors.js';

test('a native fault keeps everything that it tells', (t) => {
  const fault = {
    code: 'ERR_TOWLINE_DEVICE',
    message: 'no',
    errno: 5,
    syscall: 'ioctl',
    nvmeStatus: 0x0139,
    state: 'stop',
    details: { a: 1 },
  };
  const error = unwrapFault(new Error(JSON.stringify(fault)), { function: 'f' });
  t.like(error, { ...fault, function: 'f', name: 'TowlineError' });
  t.is(unwrapFault(error), error);
});

test('a code that is not known is internal and not lost', (t) => {
  const error = unwrapFault(new Error(JSON.stringify({ code: 'ERR_TOWLINE_OF_TOMORROW', message: 'm' })));
  t.is(error.code, 'ERR_TOWLINE_INTERNAL');
  t.like(error.details, { nativeCode: 'ERR_TOWLINE_OF_TOMORROW' });
  t.is(
    unwrapFault(new Error(JSON.stringify({ code: 'ERR_TOWLINE_CANCELLED', message: 'm' }))).code,
    'ERR_TOWLINE_ABORTED',
  );
});

test('what is no fault is wrapped with its cause', (t) => {
  for (const thrown of [new Error('{"code":1}'), new Error('{broken'), 'text', undefined, { code: 'x' }]) {
    const error = unwrapFault(thrown);
    t.is(error.code, 'ERR_TOWLINE_INTERNAL');
    t.is(error.cause, thrown);
  }
  const system = Object.assign(new Error('open'), { errno: -13, code: 'EACCES', syscall: 'open' });
  t.like(unwrapFault(system), { code: 'ERR_TOWLINE_PERMISSION', errno: 13, syscall: 'open' });
});

test('an error survives JSON, its causes too', (t) => {
  const cause = new TowlineError('ERR_TOWLINE_MISMATCH', 'inner', { details: { mismatches: [] } });
  const error = new TowlineError('ERR_TOWLINE_ROLLED_BACK', 'outer', {
    cause,
    nvmeStatus: 2,
    state: 'stop',
    function: 'f',
  });
  const back = errorFromJson(JSON.parse(JSON.stringify(error)));
  t.like(back, { code: error.code, message: 'outer', nvmeStatus: 2, state: 'stop', function: 'f' });
  t.true(isTowlineError(back.cause, 'ERR_TOWLINE_MISMATCH'));
  t.is(errorFromJson({ code: 'constructor', message: 1 }).code, 'ERR_TOWLINE_INTERNAL');
});

test('every code says what to do', (t) => {
  for (const [code, mend] of Object.entries(errorCodes)) {
    t.regex(code, /^ERR_TOWLINE_[A-Z_]+$/);
    t.true(mend.length > 10, code);
  }
});

test('a fired signal is an AbortError with its reason', async (t) => {
  const reason = new Error('enough');
  const signal = AbortSignal.abort(reason);
  t.like(abortError(signal), { name: 'AbortError', code: 'ERR_TOWLINE_ABORTED', message: 'enough', cause: reason });
  t.throws(() => throwIfAborted(signal), { code: 'ERR_TOWLINE_ABORTED' });
  const controller = new AbortController();
  let told = false;
  const waiting = withSignal(new Promise<never>(() => undefined), controller.signal, () => (told = true));
  controller.abort();
  await t.throwsAsync(waiting, { code: 'ERR_TOWLINE_ABORTED' });
  t.true(told);
  t.is(await withSignal(Promise.resolve(7), new AbortController().signal), 7);
});
