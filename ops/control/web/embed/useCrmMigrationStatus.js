/*
 * Vue 3: the status of the CRM import as refs, polled as <crm-migration-status> polls it (same code, same behaviour).
 *
 *   const { visible, percent } = useCrmMigrationStatus({ tokenProvider: () => session.token });
 *
 * Every option may be a value, a ref or a getter; see crm-migration-status.js for what they mean. Polling begins when
 * the component is mounted and ends with it, or with the effect scope where there is no component.
 */

import { computed, getCurrentInstance, getCurrentScope, onMounted, onScopeDispose, readonly, shallowRef, toValue, watch } from "vue";

import { HIDDEN, MigrationStatusPoller } from "./crm-migration-status.js";

export function useCrmMigrationStatus(options = {}) {
  const state = shallowRef(HIDDEN);
  const settings = {
    get url() { return toValue(options.url); },
    get intervalS() { return toValue(options.intervalS); },
    get credentials() { return toValue(options.credentials); },
    // A token provider is a function already, so it is no getter of one.
    get tokenProvider() { return options.tokenProvider; },
  };
  const poller = new MigrationStatusPoller(settings, (next) => { state.value = next; });
  const refresh = () => poller.start();
  const stop = () => poller.stop();

  if (getCurrentInstance()) onMounted(refresh);
  else refresh();
  if (getCurrentScope()) onScopeDispose(stop);
  watch(
    () => [toValue(options.url), toValue(options.intervalS), toValue(options.credentials)],
    () => { if (poller.running) refresh(); },
  );

  return {
    state: readonly(state),
    visible: computed(() => state.value.visible),
    percent: computed(() => state.value.percent),
    status: computed(() => state.value.status),
    refresh,
    stop,
  };
}
