// Posts bodies to the receiver over keep-alive connections: undici's dispatch, the fastest client of Node
// found.

import { Pool } from "undici";

export function poster(url, connections) {
  const pool = new Pool(url, { connections, pipelining: 1, headersTimeout: 15_000, bodyTimeout: 15_000 });
  const headers = ["content-type", "application/json"];
  return (body) =>
    new Promise((resolve, reject) => {
      let status = 0;
      pool.dispatch(
        { method: "POST", path: "/", headers, body },
        {
          onRequestStart() {},
          onResponseStart(controller, code) {
            status = code;
          },
          onResponseData() {},
          onResponseEnd() {
            if (status >= 200 && status < 300) resolve();
            else reject(new Error(`the receiver answered ${status}`));
          },
          onResponseError(controller, error) {
            reject(error);
          },
        },
      );
    });
}
