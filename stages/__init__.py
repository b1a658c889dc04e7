"""The curriculum: rationales, masking, rewards and one trainer per stage.

What a stage shows      data  data_files  overlap  rationale  leaks  spans  masking  tasks  fit
                        data_check  preview
Rationales to collect   teacher  chat  rationale_files
What is paid for        rewards  paper_reward
Before a run            plan  stage_plan  at_hand  shapes  memory  arguments  recipe_digest
A run                   curriculum  run  run_folder  trainers  checkpoints  recorder  metrics  alarms  curves  mishaps
                        processes  stopping  quiet  provenance  reports
Completions             rollout  rollout_engines  rollout_vllm  rollout_http  rollout_check  rollout_server
Failures                mining  draws  sampling  policy  failures  unaided  mining_report
Between stages          gates
"""
