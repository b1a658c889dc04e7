"""The curriculum: one trainer per stage, each on the frozen base and all stages before it.

curriculum gates   the stages in turn, and what has to hold between them
plan/              what a run will do, as values, refused before the first expensive byte
data/              a stage's rows, looked at
prompts/           what a stage shows: masked, shuffled, hinted
teacher/           rationales to collect
rewards/           what is paid for
training/          one stage's run: folder, trainers, checkpoints, metrics, health
rollouts/          completions to train on, here or from vLLM
runtime/           what every process of a run shares
mining/            the problems a policy persistently fails
"""
