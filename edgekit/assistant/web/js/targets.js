/**
 * Names of targets as a person reads them; a device and its runtime are proper names in any language.
 */

const NAMES = /** @type {Record<string, [string, string]>} */ ({
  "openvino-cpu": ["CPU", "OpenVINO"],
  "openvino-gpu": ["GPU", "OpenVINO"],
  "openvino-npu": ["NPU", "OpenVINO"],
  "onnx-cpu": ["CPU", "ONNX Runtime"],
  "onnx-dml": ["GPU", "DirectML"],
});

/**
 * `openvino-cpu` → `CPU · OpenVINO`.
 * @param {string} target
 */
export const targetName = (target) => (NAMES[target] ?? [target]).join(" · ");
